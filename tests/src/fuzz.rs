//! Fuzzing without a special compiler: committed inputs, and a fixed number of mutants of them, seeded.
//!
//! Each target must take any bytes without a panic, a hang or memory beyond its limits; `cargo test -p pilot-tests --test
//! fuzz` runs them. What another fuzzer finds becomes a corpus file here.

use std::path::{Path, PathBuf};

/// Folder of a target's committed inputs.
#[must_use]
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Runs `target` over its corpus and over `mutants` mutants of it; gives how many inputs were run.
///
/// # Panics
/// When the corpus is missing, or the target panics.
pub fn run(name: &str, mutants: u32, target: impl Fn(&[u8])) -> u32 {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(corpus(name)).expect("corpus").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        seeds.push(std::fs::read(path).expect("corpus file"));
    }
    assert!(!seeds.is_empty(), "the corpus of {name} is empty");
    seeds.iter().for_each(|seed| target(seed));
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for _ in 0..mutants {
        let mut input = seeds[draw.below(seeds.len())].clone();
        for _ in 0..=draw.below(4) {
            mutate(&mut input, &seeds, &mut draw);
        }
        target(&input);
    }
    u32::try_from(seeds.len()).unwrap_or(u32::MAX).saturating_add(mutants)
}

/// A small generator (xorshift64*): the same inputs in every run.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { usize::try_from(self.next() % end as u64).unwrap_or(0) }
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], draw: &mut Draw) {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.', b'\n'];
    let at = draw.below(input.len() + 1);
    match draw.below(7) {
        0 if at < input.len() => input[at] ^= 1 << draw.below(8),
        1 if at < input.len() => input[at] = TELLING[draw.below(TELLING.len())],
        2 => input.truncate(at),
        3 => input.insert(at, TELLING[draw.below(TELLING.len())]),
        4 => {
            let end = (at + draw.below(64)).min(input.len());
            input.drain(at..end);
        }
        5 => {
            let other = &seeds[draw.below(seeds.len())];
            let from = draw.below(other.len() + 1);
            let to = (from + draw.below(128)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
        _ => {
            let end = (at + draw.below(32)).min(input.len());
            let piece = input[at..end].to_vec();
            for _ in 0..draw.below(8) {
                input.splice(at..at, piece.iter().copied());
            }
        }
    }
}
