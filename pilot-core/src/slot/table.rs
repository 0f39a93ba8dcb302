//! The table: where a slot is, what happens, where it goes (`-`: nowhere), and what it does or why it ignores the event.
//!
//! Places are phases with their steps: `Unused` is Idle before the first epoch, `Warm` is Idle with an image, `Stopping`,
//! `Undoing` (a bind) and `Flushing` are Draining, `Pausing` and `LastTry` are Cleaning. Stopping and Undoing drain a
//! preempted payload, Flushing one that succeeded. Stops are the user's: they cancel.

pub(super) const TABLE: &str = "
Unused   | Claimed      | Binding                           | Bind
Unused   | ClaimedOther | Binding                           | Bind
Unused   | Adopted      | Bound                             |
Unused   | Bound        | -                                 | Late
Unused   | BindFailed   | -                                 | Late
Unused   | Go           | -                                 | NotInThisPhase
Unused   | LaunchFailed | -                                 | Late
Unused   | Exited       | -                                 | Late
Unused   | ExitedBadly  | -                                 | Late
Unused   | OutOfMemory  | -                                 | Late
Unused   | Stop         | -                                 | Late
Unused   | Kill         | -                                 | Late
Unused   | LeaseRenewed | -                                 | Late
Unused   | LeaseLost    | -                                 | Late
Unused   | SlotLost     | -                                 | Late
Unused   | Drained      | -                                 | Late
Unused   | Cleaned      | -                                 | Duplicate
Unused   | CleanFailed  | -                                 | Late
Unused   | Tick         | -                                 | Early
Unused   | TickDue      | -                                 | Early
Unused   | TickRenew    | -                                 | Early
Unused   | TickExpired  | -                                 | Early
Idle     | Claimed      | Binding                           | Bind
Idle     | ClaimedOther | Binding                           | Bind
Idle     | Adopted      | -                                 | NotInThisPhase
Idle     | Bound        | -                                 | Late
Idle     | BindFailed   | -                                 | Late
Idle     | Go           | -                                 | NotInThisPhase
Idle     | LaunchFailed | -                                 | Late
Idle     | Exited       | -                                 | Late
Idle     | ExitedBadly  | -                                 | Late
Idle     | OutOfMemory  | -                                 | Late
Idle     | Stop         | -                                 | Late
Idle     | Kill         | -                                 | Late
Idle     | LeaseRenewed | -                                 | Late
Idle     | LeaseLost    | -                                 | Late
Idle     | SlotLost     | -                                 | Late
Idle     | Drained      | -                                 | Late
Idle     | Cleaned      | -                                 | Duplicate
Idle     | CleanFailed  | -                                 | Late
Idle     | Tick         | -                                 | Early
Idle     | TickDue      | -                                 | Early
Idle     | TickRenew    | -                                 | Early
Idle     | TickExpired  | -                                 | Early
Warm     | Claimed      | Bound                             |
Warm     | ClaimedOther | Binding                           | Bind
Warm     | Adopted      | -                                 | NotInThisPhase
Warm     | Bound        | -                                 | Late
Warm     | BindFailed   | -                                 | Late
Warm     | Go           | -                                 | NotInThisPhase
Warm     | LaunchFailed | -                                 | Late
Warm     | Exited       | -                                 | Late
Warm     | ExitedBadly  | -                                 | Late
Warm     | OutOfMemory  | -                                 | Late
Warm     | Stop         | -                                 | Late
Warm     | Kill         | -                                 | Late
Warm     | LeaseRenewed | -                                 | Late
Warm     | LeaseLost    | -                                 | Late
Warm     | SlotLost     | Idle                              |
Warm     | Drained      | -                                 | Late
Warm     | Cleaned      | -                                 | Duplicate
Warm     | CleanFailed  | -                                 | Late
Warm     | Tick         | -                                 | Early
Warm     | TickDue      | -                                 | Early
Warm     | TickRenew    | -                                 | Early
Warm     | TickExpired  | -                                 | Early
Binding  | Claimed      | -                                 | NotInThisPhase
Binding  | ClaimedOther | -                                 | NotInThisPhase
Binding  | Adopted      | -                                 | NotInThisPhase
Binding  | Bound        | Bound                             |
Binding  | BindFailed   | Flushing(bind failed)             | Drain
Binding  | Go           | -                                 | NotInThisPhase
Binding  | LaunchFailed | -                                 | NotInThisPhase
Binding  | Exited       | -                                 | NotInThisPhase
Binding  | ExitedBadly  | -                                 | NotInThisPhase
Binding  | OutOfMemory  | -                                 | NotInThisPhase
Binding  | Stop         | Flushing(cancelled)               | Drain
Binding  | Kill         | Flushing(cancelled)               | Drain
Binding  | LeaseRenewed | Binding                           |
Binding  | LeaseLost    | Flushing(lease lost)              | Drain
Binding  | SlotLost     | Flushing(bind failed)             | Drain
Binding  | Drained      | -                                 | NotInThisPhase
Binding  | Cleaned      | -                                 | NotInThisPhase
Binding  | CleanFailed  | -                                 | NotInThisPhase
Binding  | Tick         | -                                 | Early
Binding  | TickDue      | Flushing(bind failed)             | Drain
Binding  | TickRenew    | Binding                           | Renew
Binding  | TickExpired  | Flushing(lease lost)              | Drain
Bound    | Claimed      | -                                 | NotInThisPhase
Bound    | ClaimedOther | -                                 | NotInThisPhase
Bound    | Adopted      | -                                 | NotInThisPhase
Bound    | Bound        | -                                 | Duplicate
Bound    | BindFailed   | -                                 | NotInThisPhase
Bound    | Go           | Running                           | Launch
Bound    | LaunchFailed | -                                 | NotInThisPhase
Bound    | Exited       | -                                 | NotInThisPhase
Bound    | ExitedBadly  | -                                 | NotInThisPhase
Bound    | OutOfMemory  | -                                 | NotInThisPhase
Bound    | Stop         | Flushing(cancelled)               | Drain
Bound    | Kill         | Flushing(cancelled)               | Drain
Bound    | LeaseRenewed | Bound                             |
Bound    | LeaseLost    | Flushing(lease lost)              | Drain
Bound    | SlotLost     | Flushing(slot lost)               | Drain
Bound    | Drained      | -                                 | NotInThisPhase
Bound    | Cleaned      | -                                 | NotInThisPhase
Bound    | CleanFailed  | -                                 | NotInThisPhase
Bound    | Tick         | -                                 | Early
Bound    | TickDue      | Flushing(waited too long)         | Drain
Bound    | TickRenew    | Bound                             | Renew
Bound    | TickExpired  | Flushing(lease lost)              | Drain
Running  | Claimed      | -                                 | NotInThisPhase
Running  | ClaimedOther | -                                 | NotInThisPhase
Running  | Adopted      | -                                 | NotInThisPhase
Running  | Bound        | -                                 | Duplicate
Running  | BindFailed   | -                                 | NotInThisPhase
Running  | Go           | -                                 | Duplicate
Running  | LaunchFailed | Flushing(launch failed)           | Drain
Running  | Exited       | Flushing(exit code 0)             | Drain+commit
Running  | ExitedBadly  | Flushing(exit code 3)             | Drain
Running  | OutOfMemory  | Flushing(memory exceeded)         | Drain
Running  | Stop         | Stopping(cancelled)               | Term
Running  | Kill         | Flushing(cancelled)               | Kill, Drain
Running  | LeaseRenewed | Running                           |
Running  | LeaseLost    | Stopping(lease lost)              | Term
Running  | SlotLost     | Flushing(slot lost)               | Drain
Running  | Drained      | -                                 | NotInThisPhase
Running  | Cleaned      | -                                 | NotInThisPhase
Running  | CleanFailed  | -                                 | NotInThisPhase
Running  | Tick         | -                                 | Early
Running  | TickDue      | Stopping(walltime exceeded)       | Term
Running  | TickRenew    | Running                           | Renew
Running  | TickExpired  | Stopping(lease lost)              | Term
Stopping | Claimed      | -                                 | NotInThisPhase
Stopping | ClaimedOther | -                                 | NotInThisPhase
Stopping | Adopted      | -                                 | NotInThisPhase
Stopping | Bound        | -                                 | Duplicate
Stopping | BindFailed   | -                                 | NotInThisPhase
Stopping | Go           | -                                 | NotInThisPhase
Stopping | LaunchFailed | Flushing(preempted)               | Drain
Stopping | Exited       | Flushing(preempted)               | Drain
Stopping | ExitedBadly  | Flushing(preempted)               | Drain
Stopping | OutOfMemory  | Flushing(preempted)               | Drain
Stopping | Stop         | Stopping(cancelled)               |
Stopping | Kill         | Flushing(cancelled)               | Kill, Drain
Stopping | LeaseRenewed | Stopping(preempted)               |
Stopping | LeaseLost    | Stopping(lease lost)              |
Stopping | SlotLost     | Flushing(preempted)               | Drain
Stopping | Drained      | -                                 | NotInThisPhase
Stopping | Cleaned      | -                                 | NotInThisPhase
Stopping | CleanFailed  | -                                 | NotInThisPhase
Stopping | Tick         | -                                 | Early
Stopping | TickDue      | Flushing(preempted)               | Kill, Drain
Stopping | TickRenew    | Stopping(preempted)               | Renew
Stopping | TickExpired  | Stopping(lease lost)              |
Undoing  | Claimed      | -                                 | NotInThisPhase
Undoing  | ClaimedOther | -                                 | NotInThisPhase
Undoing  | Adopted      | -                                 | NotInThisPhase
Undoing  | Bound        | Flushing(preempted)               | Term
Undoing  | BindFailed   | -                                 | Late
Undoing  | Go           | -                                 | NotInThisPhase
Undoing  | LaunchFailed | -                                 | NotInThisPhase
Undoing  | Exited       | -                                 | NotInThisPhase
Undoing  | ExitedBadly  | -                                 | NotInThisPhase
Undoing  | OutOfMemory  | -                                 | NotInThisPhase
Undoing  | Stop         | Flushing(cancelled)               |
Undoing  | Kill         | Flushing(cancelled)               |
Undoing  | LeaseRenewed | Flushing(preempted)               |
Undoing  | LeaseLost    | Flushing(lease lost)              |
Undoing  | SlotLost     | -                                 | Late
Undoing  | Drained      | Cleaning(Working)                 | Release(preempted), Clean
Undoing  | Cleaned      | -                                 | NotInThisPhase
Undoing  | CleanFailed  | -                                 | NotInThisPhase
Undoing  | Tick         | -                                 | Early
Undoing  | TickDue      | Cleaning(Working)                 | Release(preempted), Clean
Undoing  | TickRenew    | Flushing(preempted)               | Renew
Undoing  | TickExpired  | Flushing(lease lost)              |
Flushing | Claimed      | -                                 | NotInThisPhase
Flushing | ClaimedOther | -                                 | NotInThisPhase
Flushing | Adopted      | -                                 | NotInThisPhase
Flushing | Bound        | -                                 | Duplicate
Flushing | BindFailed   | -                                 | Late
Flushing | Go           | -                                 | NotInThisPhase
Flushing | LaunchFailed | -                                 | Duplicate
Flushing | Exited       | -                                 | Duplicate
Flushing | ExitedBadly  | -                                 | Duplicate
Flushing | OutOfMemory  | -                                 | Duplicate
Flushing | Stop         | Flushing(exit code 0)             |
Flushing | Kill         | Flushing(exit code 0)             |
Flushing | LeaseRenewed | Flushing(exit code 0)             |
Flushing | LeaseLost    | Flushing(lease lost)              |
Flushing | SlotLost     | -                                 | Late
Flushing | Drained      | Cleaning(Working)                 | Report(succeeded), Clean
Flushing | Cleaned      | -                                 | NotInThisPhase
Flushing | CleanFailed  | -                                 | NotInThisPhase
Flushing | Tick         | -                                 | Early
Flushing | TickDue      | Cleaning(Working)                 | Report(failed: commit outputs of payload in time), Clean
Flushing | TickRenew    | Flushing(exit code 0)             | Renew
Flushing | TickExpired  | Flushing(lease lost)              |
Cleaning | Claimed      | -                                 | NotInThisPhase
Cleaning | ClaimedOther | -                                 | NotInThisPhase
Cleaning | Adopted      | -                                 | NotInThisPhase
Cleaning | Bound        | -                                 | Late
Cleaning | BindFailed   | -                                 | Late
Cleaning | Go           | -                                 | NotInThisPhase
Cleaning | LaunchFailed | -                                 | Late
Cleaning | Exited       | -                                 | Late
Cleaning | ExitedBadly  | -                                 | Late
Cleaning | OutOfMemory  | -                                 | Late
Cleaning | Stop         | -                                 | Late
Cleaning | Kill         | -                                 | Late
Cleaning | LeaseRenewed | -                                 | Late
Cleaning | LeaseLost    | -                                 | Late
Cleaning | SlotLost     | -                                 | Late
Cleaning | Drained      | -                                 | Duplicate
Cleaning | Cleaned      | Idle(warm)                        |
Cleaning | CleanFailed  | Cleaning(Pausing)                 |
Cleaning | Tick         | -                                 | Early
Cleaning | TickDue      | Cleaning(Pausing)                 |
Cleaning | TickRenew    | -                                 | Early
Cleaning | TickExpired  | -                                 | Early
Pausing  | Claimed      | -                                 | NotInThisPhase
Pausing  | ClaimedOther | -                                 | NotInThisPhase
Pausing  | Adopted      | -                                 | NotInThisPhase
Pausing  | Bound        | -                                 | Late
Pausing  | BindFailed   | -                                 | Late
Pausing  | Go           | -                                 | NotInThisPhase
Pausing  | LaunchFailed | -                                 | Late
Pausing  | Exited       | -                                 | Late
Pausing  | ExitedBadly  | -                                 | Late
Pausing  | OutOfMemory  | -                                 | Late
Pausing  | Stop         | -                                 | Late
Pausing  | Kill         | -                                 | Late
Pausing  | LeaseRenewed | -                                 | Late
Pausing  | LeaseLost    | -                                 | Late
Pausing  | SlotLost     | -                                 | Late
Pausing  | Drained      | -                                 | Duplicate
Pausing  | Cleaned      | Idle                              |
Pausing  | CleanFailed  | -                                 | Duplicate
Pausing  | Tick         | -                                 | Early
Pausing  | TickDue      | Cleaning(Working)                 | Clean
Pausing  | TickRenew    | -                                 | Early
Pausing  | TickExpired  | -                                 | Early
LastTry  | Claimed      | -                                 | NotInThisPhase
LastTry  | ClaimedOther | -                                 | NotInThisPhase
LastTry  | Adopted      | -                                 | NotInThisPhase
LastTry  | Bound        | -                                 | Late
LastTry  | BindFailed   | -                                 | Late
LastTry  | Go           | -                                 | NotInThisPhase
LastTry  | LaunchFailed | -                                 | Late
LastTry  | Exited       | -                                 | Late
LastTry  | ExitedBadly  | -                                 | Late
LastTry  | OutOfMemory  | -                                 | Late
LastTry  | Stop         | -                                 | Late
LastTry  | Kill         | -                                 | Late
LastTry  | LeaseRenewed | -                                 | Late
LastTry  | LeaseLost    | -                                 | Late
LastTry  | SlotLost     | -                                 | Late
LastTry  | Drained      | -                                 | Duplicate
LastTry  | Cleaned      | Idle                              |
LastTry  | CleanFailed  | Retired                           |
LastTry  | Tick         | -                                 | Early
LastTry  | TickDue      | Retired                           |
LastTry  | TickRenew    | -                                 | Early
LastTry  | TickExpired  | -                                 | Early
Retired  | Claimed      | -                                 | NotInThisPhase
Retired  | ClaimedOther | -                                 | NotInThisPhase
Retired  | Adopted      | -                                 | NotInThisPhase
Retired  | Bound        | -                                 | Late
Retired  | BindFailed   | -                                 | Late
Retired  | Go           | -                                 | NotInThisPhase
Retired  | LaunchFailed | -                                 | Late
Retired  | Exited       | -                                 | Late
Retired  | ExitedBadly  | -                                 | Late
Retired  | OutOfMemory  | -                                 | Late
Retired  | Stop         | -                                 | Late
Retired  | Kill         | -                                 | Late
Retired  | LeaseRenewed | -                                 | Late
Retired  | LeaseLost    | -                                 | Late
Retired  | SlotLost     | -                                 | Late
Retired  | Drained      | -                                 | Late
Retired  | Cleaned      | -                                 | Late
Retired  | CleanFailed  | -                                 | Late
Retired  | Tick         | -                                 | Early
Retired  | TickDue      | -                                 | Early
Retired  | TickRenew    | -                                 | Early
Retired  | TickExpired  | -                                 | Early
";
