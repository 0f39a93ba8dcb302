//! The Identity service: who this plugin is, and whether it can be called.
//!
//! **Must not know:** volumes.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use crate::grpc::csi;
use crate::metrics::Metrics;

/// Says who this is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The driver's name, as the CSIDriver object has it.
    pub name: String,
    /// Knows whether the driver is ready.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl csi::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: std::collections::HashMap::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        // No controller, no topology: volumes are the node's.
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(self.metrics.is_recovered()) }))
    }
}
