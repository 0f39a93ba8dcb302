use super::*;

async fn after(cluster: &mut PodCluster) -> (StopRequest, u64) {
    let began = Instant::now();
    let request = cluster.watch_stop().await;
    (request, began.elapsed().as_secs())
}

/// A signal to the test's own process would reach the other tests; the clock is what is looked at here.
#[tokio::test(start_paused = true)]
async fn a_pods_grace_ends_with_a_kill_while_there_is_time_to_report() {
    for (grace, kill_after) in [(60, 55), (30, 25), (4, 2)] {
        let signals = LocalCluster::listen().expect("listen");
        let mut cluster = PodCluster::new(signals, Duration::from_secs(grace));
        cluster.kill_at = Some(Instant::now() + cluster.grace - LAST_WORDS.min(cluster.grace / 2));
        let (request, seconds) = after(&mut cluster).await;
        assert_eq!(request, StopRequest::Kill { signal: 15, cause: StopCause::Evicted });
        assert_eq!(seconds, kill_after);
    }
}
