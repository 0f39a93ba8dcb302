//! Who may use the node: tests with namespaces of their own share it, one that stops its services has it alone.
//!
//! This holds within one test process.
//!
//! **Must not know:** what is done with a turn.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static NODE: RwLock<()> = RwLock::new(());

/// What a thread holds of the lock: a test with two namespaces must not wait for a test that waits for it.
#[derive(Default)]
struct Held {
    turns: u32,
    _shared: Option<RwLockReadGuard<'static, ()>>,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
}

thread_local! {
    static HELD: RefCell<Held> = RefCell::default();
}

/// A turn of this thread; it can't go to another one.
#[derive(Debug)]
pub(super) struct Turn(PhantomData<RwLockReadGuard<'static, ()>>);

impl Turn {
    /// Beside others.
    pub(super) fn shared() -> Self {
        Self::take(|held| {
            held._shared = Some(NODE.read().unwrap_or_else(PoisonError::into_inner));
        })
    }

    /// With nobody else there.
    pub(super) fn alone() -> Self {
        Self::take(|held| {
            held._alone = Some(NODE.write().unwrap_or_else(PoisonError::into_inner));
        })
    }

    fn take(lock: impl FnOnce(&mut Held)) -> Self {
        HELD.with_borrow_mut(|held| {
            if held.turns == 0 {
                lock(held);
            }
            held.turns += 1;
        });
        Self(PhantomData)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            held.turns -= 1;
            if held.turns == 0 {
                *held = Held::default();
            }
        });
    }
}
