"""plot.py RESULTS SVG: the hand-offs of stages as a picture: time over size, both logarithmic."""

import json
import math
import sys

SIZES = {"4 KiB": 12, "64 KiB": 16, "1 MiB": 20, "64 MiB": 26, "512 MiB": 29, "1 GiB": 30}
PANELS = [("mapped", "until the consumer has all bytes"), ("read", "until it has read each byte")]
# Each line: who, colour, and whether it is dashed, which is Python.
LINES = [
    ("stage", "#c00000", False), ("stage-huge", "#e377c2", False), ("python", "#c00000", True), ("pipe", "#1f77b4", False), ("unix", "#2ca02c", False),
    ("tcp", "#9467bd", False), ("tmpfs", "#8c564b", False), ("redis", "#7f7f7f", False),
    ("redis-python", "#7f7f7f", True), ("vineyard", "#ff7f0e", True), ("ray", "#17becf", True),
]
WIDTH, HEIGHT, LEFT, TOP = 330, 330, 60, 40
LEAST, MOST = 1, 7  # 10 us to 10 s


def main(results, svg):
    with open(results) as file:
        sections = json.load(file)["sections"]
    series = next((section["series"] for section in sections if section["section"] == "stages"), None)
    if series is None:
        return
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 420" font-family="sans-serif" font-size="12">',
        '<rect width="940" height="420" fill="#ffffff"/>',
    ]
    for at, (what, title) in enumerate(PANELS):
        x0 = LEFT + at * (WIDTH + 60)

        def place(power, us):
            return x0 + (power - 12) / 18 * WIDTH, TOP + HEIGHT - (math.log10(us) - LEAST) / (MOST - LEAST) * HEIGHT

        out.append(f'<text x="{x0}" y="{TOP - 14}" font-weight="bold">{title}</text>')
        for decade in range(LEAST, MOST + 1):
            _, y = place(12, 10**decade)
            label = {1: "10 us", 2: "100 us", 3: "1 ms", 4: "10 ms", 5: "100 ms", 6: "1 s", 7: "10 s"}[decade]
            out.append(f'<line x1="{x0}" y1="{y:.0f}" x2="{x0 + WIDTH}" y2="{y:.0f}" stroke="#dddddd"/>')
            out.append(f'<text x="{x0 - 6}" y="{y + 4:.0f}" text-anchor="end">{label}</text>')
        for size, power in SIZES.items():
            if power == 29:
                continue  # its label would lie on the last one's
            x, _ = place(power, 10)
            out.append(f'<text x="{x:.0f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{size}</text>')
        for who, colour, dashed in LINES:
            found = [(power, series.get(f"{who}/{what}, {size} [us]")) for size, power in SIZES.items()]
            points = " ".join("%.1f,%.1f" % place(power, one["p50"]) for power, one in found if one)
            style = f'fill="none" stroke="{colour}" stroke-width="{3 if colour == "#c00000" else 1.5}"'
            dashes = ' stroke-dasharray="6 4"' if dashed else ""
            out.append(f'<polyline points="{points}" {style}{dashes}/>')
    for at, (who, colour, dashed) in enumerate(LINES):
        x, y = LEFT + 2 * WIDTH + 80, TOP + 10 + 22 * at
        dashes = ' stroke-dasharray="6 4"' if dashed else ""
        out.append(f'<line x1="{x}" y1="{y}" x2="{x + 28}" y2="{y}" stroke="{colour}" stroke-width="2.5"{dashes}/>')
        out.append(f'<text x="{x + 34}" y="{y + 4}">{who}</text>')
    out.append("</svg>")
    with open(svg, "w") as file:
        file.write("\n".join(out) + "\n")


main(*sys.argv[1:])
