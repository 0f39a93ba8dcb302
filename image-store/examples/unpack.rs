//! Stores an image and materialises it: `unpack REFERENCE STORE LOCAL [data-only|copy] [lazy]`. Prints how
//! long each step took; the benchmark against other unpackers calls it.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use image_store::{Attach, Options, Reference, RegistryAccess, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [reference, store, local, rest @ ..] = &arguments[..] else {
        return Err("unpack REFERENCE STORE LOCAL [data-only|copy] [lazy]".into());
    };
    let attach = if rest.iter().any(|word| word == "copy") { Attach::Copy } else { Attach::DataOnly };
    let lazy_sync = rest.iter().any(|word| word == "lazy");
    let reference: Reference = reference.parse()?;
    let store = Store::open_with(Path::new(store), Options { lazy_sync, ..Options::default() })?;
    let found = timed("preflight", || store.preflight(&reference, &RegistryAccess::anonymous()))?;
    let image = timed("ingest", || store.ingest(&reference, &RegistryAccess::anonymous(), &|_| {}))?;
    assert_eq!(image, found.image);
    for step in ["first attach", "second attach"] {
        let root = timed(step, || store.materialise(&image, attach, Path::new(local), false))?;
        println!("{root:?}");
    }
    let stored = store.image(&image)?;
    println!("{image}: {} bytes in {} names", stored.unpacked_bytes, stored.entries);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the example measures time")]
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.3} s", start.elapsed().as_secs_f64());
    result
}
