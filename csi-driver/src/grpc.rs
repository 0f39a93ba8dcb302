//! Generated from `proto/` by `build.rs`.
#![expect(missing_docs, clippy::allow_attributes, clippy::too_many_lines, reason = "generated")]

/// The Container Storage Interface.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Registration with the kubelet.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
