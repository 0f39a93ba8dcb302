//! A shim that waits in a pod's slot and belongs to no epoch yet: its nonce is zeros, and it has all the time there is.
//! That it never gives up is tried with made-up time in `src/link_tests.rs`.

mod common;

use common::{Setup, in_slots};
use rustix::process::Signal;
use wire::slot::*;

const IDLE: Setup = Setup { uid: None, extra: "", nonce: Nonce::IDLE, settings: "", own_pids: true };

#[test]
fn it_is_greeted_cleans_and_retires() {
    in_slots("idle, retired", IDLE, |slot| {
        slot.greet(0);
        assert_eq!(slot.clean(), CleanReport::default());
        slot.tell(&ToShim::Retire, &[]);
        assert_eq!(slot.exit(), (Some(0), String::new()));
    });
}

#[test]
fn sigterm_is_its_end_with_and_without_a_pilot() {
    in_slots("idle, without a pilot", IDLE, |slot| {
        // One connection says that it is up; the next finds nobody.
        slot.accept();
        slot.stop_listening();
        slot.hang_up();
        slot.signal_from_outside(Signal::TERM);
        assert_eq!(slot.exit(), (Some(143), String::new()));
    });
    in_slots("idle, with a pilot", IDLE, |slot| {
        slot.greet(0);
        slot.signal_from_outside(Signal::TERM);
        assert_eq!(slot.exit(), (Some(143), String::new()));
    });
}

#[test]
fn it_calls_again_whenever_its_pilot_hangs_up_or_is_started_again() {
    in_slots("idle, hung up", IDLE, |slot| {
        for _ in 0..6 {
            assert_eq!(slot.accept(), ShimState::Idle);
            slot.hang_up();
        }
        // With no grace any other shim would leave at once.
        for _ in 0..3 {
            slot.greet(0);
            slot.hang_up();
            slot.listen_again();
        }
        slot.greet(0);
        slot.tell(&ToShim::Retire, &[]);
        assert_eq!(slot.exit().0, Some(0));
    });
}
