//! The pilot of a pod: from settings to its slots.
//!
//! **Must not know:** what is run there.

use pilot_core::RunExit;

use crate::cli::{complain, refuse};
use crate::config::{Config, PodPlace, Settings, Surroundings};
use crate::fault::chain;
use crate::remote::attend;
use crate::runtime::kubernetes::{KubernetesRuntime, PodConfig};

/// The slots of the pod that this process is in. A pilot that `serves` may be followed by another life of itself.
///
/// # Errors
/// A line for people and the exit code: a setting is missing, this is no pod, or the pod is not as it should be.
pub(super) async fn runtime(config: &Config, serves: bool) -> Result<KubernetesRuntime, (String, RunExit)> {
    let place = config.place.clone().unwrap_or_default();
    let PodPlace { share, pod, namespace, idle_image, pull_secret, prefetches, resizes } = place;
    let missing = |name: &str| {
        (format!("--{name} is not set; `pilot pod` prints a pod in which it is"), RunExit::BadInput)
    };
    let share = share.ok_or_else(|| missing("share"))?;
    let pod = pod.ok_or_else(|| missing("pod"))?;
    let idle_image = idle_image.ok_or_else(|| missing("idle-image"))?;
    let inside = kube::Config::incluster().map_err(|error| {
        (format!("find the API server from inside a pod: {}", chain(&error)), RunExit::HostUnable)
    })?;
    let namespace = namespace.unwrap_or_else(|| inside.default_namespace.clone());
    let client = kube::Client::try_from(inside)
        .map_err(|error| (format!("talk to the API server: {}", chain(&error)), RunExit::HostUnable))?;
    let config = PodConfig {
        client,
        namespace,
        pod,
        share,
        idle_image,
        registry_access: config.registry_access.clone(),
        store: config.store.clone(),
        stage_memory_bytes: config.memory_bytes,
        stage_disk_bytes: config.stage_disk_bytes,
        spill_to: config.spill_to.clone(),
        object_access: config.object_access.clone(),
        object_cache_bytes: config.object_cache_bytes,
        log_max_bytes: config.log_max_bytes,
        reuse: config.reuse,
        serves,
        orphan_grace_ms: config.orphan_grace_ms,
        pull_secret,
        prefetches,
        resizes,
    };
    KubernetesRuntime::new(config).await.map_err(|error| (chain(&error), RunExit::HostUnable))
}

/// Holds the pod while a run from a workstation is attended to.
pub fn stand(settings: Settings, around: &Surroundings) -> RunExit {
    within(settings, around, async |config| match runtime(&config, false).await {
        Ok(runtime) => attend::stand(&config, runtime).await,
        Err((line, exit)) => {
            complain(&line);
            exit
        }
    })
}

/// Attends to a run from a workstation.
pub fn attend(settings: Settings, around: &Surroundings) -> RunExit {
    within(settings, around, async |config| {
        let runtime = runtime(&config, false).await;
        attend::attend(&config, runtime).await
    })
}

fn within(settings: Settings, around: &Surroundings, work: impl AsyncFnOnce(Config) -> RunExit) -> RunExit {
    let config = match Config::new(settings, around) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    match super::threads() {
        Ok(threads) => {
            let exit = threads.block_on(work(config));
            // A read of standard input can't be called back.
            threads.shutdown_background();
            exit
        }
        Err(error) => {
            complain(&format!("start: {error}"));
            RunExit::OwnFault
        }
    }
}
