//! How much a pilot's decisions cost: nanoseconds for each payload on its whole way, from the offer to the report.
//!
//! `cargo run --release -p pilot-core --example throughput`

use std::collections::VecDeque;
use std::io::Write;

use pilot_core::{
    Claim, ClaimId, Demand, Drained, Epoch, Event, ExitStatus, Input, Lease, Moment, Order, Output, Payload,
    Pilot, PilotConfig, SlotId,
};

const PAYLOADS: u64 = 200_000;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let worlds = [(2, 0, 1), (2, 64, 1), (16, 64, 1), (64, 0, 1), (64, 256, 1), (2, 64, 8), (64, 256, 8)];
    for (slots, waiting, images) in worlds {
        let (ns, inputs) = run(slots, waiting, images);
        writeln!(
            out,
            "{slots:3} slots, {waiting:3} waiting, {images} images: {ns:6} ns and {inputs:.1} inputs a payload"
        )?;
    }
    Ok(())
}

/// Everything answers at once, and every slot stays warm; with several images that does not help all of those that wait.
fn run(slots: u32, waiting: u32, images: u64) -> (u128, f64) {
    let total = Demand { cpu_millis: slots.into(), memory_bytes: slots.into() };
    let config = PilotConfig { bind_ahead: waiting, ..PilotConfig::new(slots, total) };
    let mut pilot = Pilot::new(config);
    let payload = payload();
    let mut inputs = VecDeque::from([Input::Tick]);
    let (mut offered, mut done, mut count) = (0, 0, 0_u64);
    #[expect(clippy::disallowed_methods, reason = "this program measures time")]
    let start = std::time::Instant::now();
    while let Some(input) = inputs.pop_front() {
        count += 1;
        let now = Moment(count / 8);
        for output in pilot.handle(now, input) {
            match output {
                Output::AskClaims(n) => {
                    let n = u64::from(n).min(PAYLOADS - offered);
                    let lease = Lease { renew_at: now.after_ms(30_000), expires_at: now.after_ms(60_000) };
                    let lease = Some(lease);
                    let claim = |id| Claim { id: ClaimId(id), payload: payload.clone(), lease, gang: None };
                    let claims: Vec<Claim> = (offered..offered + n).map(claim).collect();
                    offered += n;
                    inputs.push_back(Input::Offered(claims));
                }
                Output::Prepare(claim) => inputs.push_back(Input::Prepared {
                    claim: claim.id,
                    image: format!("{}{}", claim.payload.image, claim.id.0 % images).as_str().into(),
                    bytes_missing: 0,
                }),
                Output::Slot { slot, epoch, order, .. } => inputs.extend(answer(slot, epoch, &order)),
                Output::Report { claim, .. } => {
                    done += 1;
                    inputs.push_back(Input::ReportDone { claim });
                }
                _ => {}
            }
        }
        // As the caller does before it sleeps.
        std::hint::black_box(pilot.deadline());
        if done == PAYLOADS {
            break;
        }
    }
    assert_eq!(done, PAYLOADS, "every payload must come to its end");
    (start.elapsed().as_nanos() / u128::from(PAYLOADS), count as f64 / PAYLOADS as f64)
}

fn answer(slot: SlotId, epoch: Epoch, order: &Order) -> Option<Input> {
    let event = match order {
        Order::Bind(_) => Event::Bound,
        Order::Launch(_) => Event::Exited(ExitStatus::SUCCESS.into()),
        Order::Drain { .. } => Event::Drained(Drained::default()),
        Order::Clean => Event::Cleaned { warm: true },
        Order::Signal(_) => return None,
    };
    Some(Input::Slot { slot, epoch, event })
}

fn payload() -> Payload {
    Payload {
        name: "payload".into(),
        family: "family".into(),
        demand: Demand { cpu_millis: 1, memory_bytes: 1 },
        trust: "alice".into(),
        image: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into(),
        inputs: ["stage:a".into(), "stage:b".into()].into(),
        bind_timeout_ms: 60_000,
        walltime_ms: 600_000,
        grace_ms: 5_000,
        at_most_once: false,
        reusable: true,
    }
}
