//! Registration with the kubelet, without a sidecar: the kubelet finds a socket in its folder of plugins, asks who is there, and
//! says how it went.
//!
//! **Must not know:** volumes, sockets.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use crate::grpc::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};
use crate::metrics::Metrics;

/// Versions of CSI as the kubelet counts them: it asks for one that begins with 1.
const VERSIONS: [&str; 1] = ["1.0.0"];

/// Says who this is.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The driver's name.
    pub name: String,
    /// Where the kubelet, in its own root, finds the socket with the other services.
    pub endpoint: String,
    /// Knows how it went.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("registered with the kubelet");
        } else {
            tracing::error!(error, "the kubelet does not register the driver");
        }
        self.metrics.registered(plugin_registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
