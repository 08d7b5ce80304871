//! Readiness: the proxy is ready when everything that it named has happened, and no longer while it drains.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Shared by whoever has to be waited for and by the health endpoint. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, usize>>>);

/// Something that has to happen first. Dropping it without [`Token::done`] leaves the proxy not ready for ever.
#[must_use]
#[derive(Debug)]
pub struct Token {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Not ready until the token is done.
    pub fn token(&self, name: &'static str) -> Token {
        *self.lock().entry(name).or_default() += 1;
        Token {
            readiness: self.clone(),
            name,
        }
    }

    /// The names of what is missing; empty: ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    /// It has happened.
    pub fn done(self) {
        let mut pending = self.readiness.lock();
        if let Some(count) = pending.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_token_is_done() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let (a, b, c) = (
            readiness.token("workers"),
            readiness.token("workers"),
            readiness.token("steering"),
        );
        a.done();
        c.done();
        assert_eq!(readiness.pending(), ["workers"]);
        b.done();
        assert!(readiness.is_ready());
    }
}
