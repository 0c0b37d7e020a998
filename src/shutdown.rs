//! Shutdown as an argument: one trigger, any number of listeners, and a wait that ends early.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
struct State {
    set: Mutex<bool>,
    changed: Condvar,
}

impl State {
    /// A flag cannot be left half-written, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks everybody who holds the matching [`Shutdown`] to drain and stop.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<State>);

/// Tells whether it is time to drain and stop.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<State>);

impl Shutdown {
    /// A trigger and what it triggers. Both may be cloned; dropping the trigger does not set it.
    pub fn new() -> (Trigger, Self) {
        let state = Arc::new(State::default());
        (Trigger(state.clone()), Self(state))
    }

    /// Whether the trigger was pulled.
    pub fn is_set(&self) -> bool {
        *self.0.lock()
    }

    /// Waits until the trigger is pulled or `limit` has passed; tells whether it was pulled.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut set = self.0.lock();
        while !*set {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            set = self.0.changed.wait_timeout(set, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *set
    }
}

impl Trigger {
    /// Sets it, once and for all.
    pub fn set(&self) {
        *self.0.lock() = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_the_trigger_is_pulled() {
        let (trigger, shutdown) = Shutdown::new();
        let listener = shutdown.clone();
        assert!(!listener.wait_timeout(Duration::from_millis(1)) && !shutdown.is_set());
        let waiting = std::thread::spawn(move || {
            let start = Instant::now();
            (listener.wait_timeout(Duration::from_secs(60)), start.elapsed())
        });
        trigger.set();
        let (set, took) = waiting.join().expect("the waiter does not panic");
        assert!(set && took < Duration::from_secs(30));
        assert!(shutdown.is_set() && shutdown.wait_timeout(Duration::from_secs(60)));
    }
}
