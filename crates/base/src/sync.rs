//! Locking of values that threads share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even after a thread panicked while it held the lock: no value behind these locks is left in an inconsistent state.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
