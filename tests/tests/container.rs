//! What surrounds a payload: its root on every rung of the attach ladder, its network, its scratch places.

use pilot_tests::run::{Ran, Site, flow, sh};
use pilot_tests::skipped;

/// What each rung of the attach ladder must do alike: read, refuse to be written, be written and forget.
fn attached(site: &Site, attach: &str) -> Ran {
    let ran = site.run_with(
        &flow(&[
            sh(
                "first",
                "cat /etc/motto; (echo x > /etc/motto) 2>/dev/null || echo read-only; ls /bin | wc -l",
                "",
            ),
            sh(
                "scribble",
                "set -e; echo changed > /etc/motto; rm /bin/awk; mkdir /new; echo x > /new/file; \
                 cat /etc/motto /new/file; ls -d /bin/awk || echo gone",
                "rootfs: writable, user: '5:6'",
            ),
            sh(
                "again",
                "cat /etc/motto; ls -d /bin/awk; ls /new || echo nothing",
                "rootfs: writable, after: [scribble]",
            ),
        ]),
        &["--attach", attach],
    );
    if ran.code != 69 {
        ran.assert_code(0);
        assert!(
            site.log("first", "stdout").starts_with("as it was\nread-only\n"),
            "{}",
            site.log("first", "stdout")
        );
        assert_eq!(
            site.log("scribble", "stdout"),
            "changed\nx\ngone\n",
            "{}",
            site.log("scribble", "stderr")
        );
        assert_eq!(site.log("again", "stdout"), "as it was\n/bin/awk\nnothing\n");
    }
    ran
}

#[test]
fn every_rung_of_the_attach_ladder_gives_the_same_root() {
    let test = "every_rung_of_the_attach_ladder_gives_the_same_root";
    let Some(site) = Site::new(test) else { return };
    for attach in ["copy", "overlay", "data-only"] {
        let ran = attached(&site, attach);
        if ran.code == 69 {
            // What this kernel lacks is said in one line, and only the last rung is always there.
            assert_ne!(attach, "copy", "{}", ran.stderr);
            assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
            skipped(test, ran.stderr.trim());
        }
    }
    site.assert_baseline();
}

#[test]
fn without_a_network_there_is_a_loopback_and_nothing_else() {
    let Some(site) = Site::new("without_a_network_there_is_a_loopback_and_nothing_else") else { return };
    let list = "sed 1,2d /proc/net/dev | cut -d: -f1 | sed 's/ //g'";
    let up = "; ifconfig lo | grep -c 'UP LOOPBACK'; cat /etc/resolv.conf /etc/hosts 2>/dev/null";
    let ran = site.run(&flow(&[
        sh("alone", &format!("{list}{up}; true"), "network: none"),
        sh("shared", list, "network: host"),
    ]));
    ran.assert_code(0);
    assert_eq!(site.log("alone", "stdout"), "lo\n1\n");
    let host = std::fs::read_to_string("/proc/net/dev").expect("net");
    let mut host: Vec<&str> =
        host.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    let shared = site.log("shared", "stdout");
    let mut shared: Vec<&str> = shared.lines().collect();
    host.sort_unstable();
    shared.sort_unstable();
    assert_eq!(shared, host);
    site.assert_baseline();
}

#[test]
fn scratch_places_are_writable_fresh_and_of_the_promised_size() {
    let Some(site) = Site::new("scratch_places_are_writable_fresh_and_of_the_promised_size") else { return };
    let places = "for p in /tmp /var/tmp /dev/shm /work; do ls -A $p; echo x > $p/left || echo no $p; done; \
        df -k /tmp /var/tmp /dev/shm | awk 'NR > 1 {print $2}'; stat -c %a /tmp /var/tmp /dev/shm; \
        (echo x > /other) 2>/dev/null && echo WROTE; echo x > /dev/null; head -c 3 /dev/zero | wc -c";
    let ran = site.run(&flow(&[sh("one", places, ""), sh("two", places, "after: [one]")]));
    ran.assert_code(0);
    for payload in ["one", "two"] {
        let expected = "131072\n131072\n131072\n1777\n1777\n1777\n3\n";
        assert_eq!(site.log(payload, "stdout"), expected, "{}", site.log(payload, "stderr"));
    }
    site.assert_baseline();
}
