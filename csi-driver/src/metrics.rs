//! Figures for Prometheus. Names of volumes, pods and tenants are not told, only counts: whoever reaches the address may ask.
//!
//! **Must not know:** who reads them, how they come about.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use stage::exchange::Counts;
use tonic::Code;

use crate::volume::{Backing, Volumes};

/// From a tenth of a millisecond to the time after which the kubelet gives up.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 60.0];

/// A call and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// The method.
    pub method: &'static str,
    /// The gRPC code, as its number.
    pub code: i32,
}

/// A method.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Method {
    /// Its name.
    pub method: &'static str,
}

/// What a volume is on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `folder`, `tmpfs` or `shared`.
    pub backing: &'static str,
}

/// All figures.
pub struct Metrics {
    registry: Registry,
    calls: Family<Call, Counter>,
    seconds: Family<Method, Histogram>,
    volumes: Family<Kind, Gauge<i64, std::sync::atomic::AtomicI64>>,
    tenants: Gauge,
    used: Gauge,
    collected: Counter,
    stages: Gauge,
    stage_bytes: Gauge,
    ready: Gauge,
    recovered: AtomicBool,
    registered: AtomicU64,
}

/// How registration with the kubelet stands.
const UNREGISTERED: u64 = 0;
const REGISTERED: u64 = 1;
const NOT_WANTED: u64 = 2;

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All at nothing. `registers` says whether being registered with the kubelet is part of being ready.
    #[must_use]
    pub fn new(registers: bool) -> Self {
        let mut registry = Registry::with_prefix("latebind_csi");
        let calls = Family::<Call, Counter>::default();
        registry.register("calls", "Calls that ended, by method and gRPC code", calls.clone());
        let seconds = Family::<Method, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let help = "From a call to its answer";
        registry.register_with_unit("call", help, Unit::Seconds, seconds.clone());
        let volumes = Family::<Kind, Gauge<i64, std::sync::atomic::AtomicI64>>::default();
        registry.register("volumes", "Volumes of this node", volumes.clone());
        let (tenants, used, ready) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("tenants", "Tenants that have a volume", tenants.clone());
        registry.register_with_unit("used", "Bytes last measured in volumes", Unit::Bytes, used.clone());
        registry.register("ready", "1 while volumes can be published", ready.clone());
        let collected = Counter::default();
        registry.register("collected", "Volumes removed because their pod was gone", collected.clone());
        let (stages, stage_bytes) = (Gauge::default(), Gauge::default());
        registry.register("stages", "Stages that pilots of several pods share", stages.clone());
        let help = "What these stages have together";
        registry.register_with_unit("stage", help, Unit::Bytes, stage_bytes.clone());
        let registered = AtomicU64::new(if registers { UNREGISTERED } else { NOT_WANTED });
        let recovered = AtomicBool::new(false);
        Self {
            registry,
            calls,
            seconds,
            volumes,
            tenants,
            used,
            collected,
            stages,
            stage_bytes,
            ready,
            recovered,
            registered,
        }
    }

    /// A call has ended.
    pub fn called(&self, method: &'static str, code: Code, took: Duration) {
        self.calls.get_or_create(&Call { method, code: code.into() }).inc();
        self.seconds.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }

    /// What the driver has.
    pub(crate) fn hold(&self, volumes: &Volumes) {
        let count = |backing: fn(Backing) -> bool| {
            let count = volumes.iter().filter(|known| backing(known.volume.wanted.backing)).count();
            i64::try_from(count).unwrap_or(i64::MAX)
        };
        for (backing, count) in [
            ("folder", count(|backing| backing == Backing::Folder)),
            ("tmpfs", count(|backing| matches!(backing, Backing::Tmpfs { .. }))),
            ("shared", count(|backing| backing == Backing::Shared)),
        ] {
            self.volumes.get_or_create(&Kind { backing }).set(count);
        }
        let tenants: std::collections::BTreeSet<_> =
            volumes.iter().map(|known| &known.volume.tenant).collect();
        self.tenants.set(i64::try_from(tenants.len()).unwrap_or(i64::MAX));
        let used = volumes.iter().fold(0_u64, |sum, known| sum.saturating_add(known.used_bytes));
        self.used.set(i64::try_from(used).unwrap_or(i64::MAX));
    }

    /// What pilots share.
    pub(crate) fn share(&self, counts: Counts) {
        self.stages.set(i64::try_from(counts.objects).unwrap_or(i64::MAX));
        self.stage_bytes.set(i64::try_from(counts.bytes).unwrap_or(i64::MAX));
    }

    /// A volume went because its pod was gone.
    pub(crate) fn collected(&self) {
        self.collected.inc();
    }

    /// The driver knows what it has.
    pub(crate) fn recovered(&self) {
        self.recovered.store(true, Ordering::Relaxed);
    }

    /// Whether the driver knows what it has, so that calls are answered.
    #[must_use]
    pub fn is_recovered(&self) -> bool {
        self.recovered.load(Ordering::Relaxed)
    }

    /// The kubelet says how registration went.
    pub(crate) fn registered(&self, went_well: bool) {
        if self.registered.load(Ordering::Relaxed) != NOT_WANTED {
            self.registered.store(if went_well { REGISTERED } else { UNREGISTERED }, Ordering::Relaxed);
        }
    }

    /// Whether pods can have volumes: calls are answered, and the kubelet knows where to call.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_recovered() && self.registered.load(Ordering::Relaxed) != UNREGISTERED
    }

    /// Everything, as OpenMetrics text.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.ready.set(i64::from(self.is_ready()));
        let mut figures = String::new();
        text::encode(&mut figures, &self.registry)?;
        Ok(figures)
    }
}
