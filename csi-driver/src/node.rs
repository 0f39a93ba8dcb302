//! The Node service: reads a request, asks the driver, answers with a code. What fails is logged here, because otherwise only the
//! kubelet's log would say it.
//!
//! **Must not know:** what is done for a request.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, async_trait};

use crate::driver::Driver;
use crate::grpc::csi;
use crate::grpc::csi::node_service_capability::{Rpc, Type, rpc};
use crate::grpc::csi::volume_usage::Unit;
use crate::metrics::Metrics;
use crate::request::Reading;
use crate::settings::Config;

/// Answers the kubelet.
#[derive(Clone, Debug)]
pub struct Node {
    /// The settings.
    pub config: Arc<Config>,
    /// Who owns the volumes.
    pub driver: Driver,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
}

impl Node {
    fn reading(&self) -> Reading<'_> {
        Reading { pods: &self.config.pods, domains: &self.config.domains }
    }

    async fn counted<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let begun = Instant::now();
        let result = call.await;
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.metrics.called(method, code, begun.elapsed());
        match &result {
            // The kubelet asks about volumes that are on their way out.
            Err(status) if code == Code::NotFound => {
                tracing::debug!(method, error = status.message(), "refused")
            }
            Err(status) => tracing::warn!(method, ?code, error = status.message(), "refused"),
            Ok(_) => {}
        }
        result.map(Response::new)
    }

    async fn usage(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        if request.volume_id.is_empty() || request.volume_path.is_empty() {
            return Err(Status::invalid_argument("volume id and volume path are required"));
        }
        // Whatever can't be a volume of ours is not published.
        let unknown = |_| Status::not_found("volume is not published at that path");
        let (id, target) = self.reading().place(&request.volume_id, &request.volume_path).map_err(unknown)?;
        let (file_system, content) = self.driver.stats(id, target).await?;
        let (bytes, entries) = match content {
            Some(content) => (content.bytes, content.entries),
            None => (file_system.used_bytes, file_system.used_inodes),
        };
        let usage = |unit: Unit, total, available, used| csi::VolumeUsage {
            total: signed(total),
            available: signed(available),
            used: signed(used),
            unit: unit.into(),
        };
        Ok(csi::NodeGetVolumeStatsResponse {
            usage: vec![
                usage(Unit::Bytes, file_system.bytes, file_system.free_bytes, bytes),
                usage(Unit::Inodes, file_system.inodes, file_system.free_inodes, entries),
            ],
        })
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn absent<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{what} is not what this driver does")))
}

#[async_trait]
impl csi::node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        self.counted("NodePublishVolume", async {
            let request = self.reading().publish(request.get_ref())?;
            self.driver.publish(request).await?;
            Ok(csi::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        self.counted("NodeUnpublishVolume", async {
            let request = request.get_ref();
            let (id, target) = self.reading().place(&request.volume_id, &request.target_path)?;
            self.driver.unpublish(id, target).await?;
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        self.counted("NodeGetVolumeStats", self.usage(request.into_inner())).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        // The second makes the kubelet say a pod's fsGroup instead of changing owners itself.
        let capabilities = [rpc::Type::GetVolumeStats, rpc::Type::VolumeMountGroup]
            .map(|kind| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.to_vec() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let most = i64::try_from(self.config.limits.volumes).unwrap_or(i64::MAX);
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.config.node_id.clone(),
            max_volumes_per_node: most,
            accessible_topology: None,
        }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        absent("staging")
    }

    async fn node_unstage_volume(
        &self,
        _: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        absent("staging")
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        absent("expansion")
    }

    async fn node_get_volume_health(
        &self,
        _: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        absent("health of volumes")
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        absent("health of storage")
    }
}
