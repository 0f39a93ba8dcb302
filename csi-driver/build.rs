//! Messages and services from the vendored protocol files, without a `protoc`.

/// The files, in `proto/`.
const FILES: [&str; 2] = ["csi.proto", "pluginregistration.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let mut descriptors = protox::compile(FILES, ["proto"])?;
    for file in &mut descriptors.file {
        // Other people's comments would become documentation, whose markup is not ours to mend.
        file.source_code_info = None;
    }
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
