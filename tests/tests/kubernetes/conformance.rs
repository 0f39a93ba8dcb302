//! The kubernetes runtime keeps the promises of its port, on a real node.

use pilot_tests::conformance::{
    runtime::{self, Trial},
    stages,
};
use pilot_tests::kube::{PodStand, Shape};

macro_rules! pod_runtime {
    ([$($kind:ident::$promise:ident),* $(,)?]) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let stand = PodStand::new(stringify!($promise), &Shape::default(), false).await;
            let trial = Trial::new(stand);
            $kind::$promise(&trial).await;
            drop(trial.into_stand().into_namespace());
        })*
    };
}

pilot_tests::runtime_promises!(pod_runtime);
