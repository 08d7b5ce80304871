//! Names of endpoints to addresses, by the system's resolver, remembered per worker.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

/// An answer is used without asking again for this long. `getaddrinfo` does not tell the record's own TTL.
const FRESH: Duration = Duration::from_secs(5);

/// An older answer is still used for this long while a new one is fetched or cannot be had.
const STALE: Duration = Duration::from_secs(60);

/// A failed look-up without an older answer is not repeated for this long.
const FAILED: Duration = Duration::from_secs(1);

/// Names remembered by one worker.
const MAX_NAMES: usize = 4096;

/// A worker's memory of names.
#[derive(Debug, Clone, Default)]
pub struct Resolver(Rc<RefCell<HashMap<String, Rc<Name>>>>);

#[derive(Debug, Default)]
struct Name {
    answer: RefCell<Option<Answer>>,
    /// Held by the one who asks; the others wait for the same answer.
    asking: Mutex<()>,
}

#[derive(Debug, Clone)]
struct Answer {
    addresses: Rc<[IpAddr]>,
    at: Instant,
    /// Empty `addresses`: the look-up failed, with these words.
    error: Option<Rc<str>>,
}

impl Resolver {
    /// The addresses of `name`, never empty. Errors carry the resolver's words.
    pub async fn lookup(&self, name: &str) -> io::Result<Rc<[IpAddr]>> {
        let entry = self.entry(name);
        match entry.known() {
            Some((answer, true)) => return answer,
            Some((answer, false)) => {
                let (entry, name) = (entry.clone(), name.to_owned());
                tokio::task::spawn_local(async move { entry.refresh(&name).await });
                return answer;
            }
            None => {}
        }
        entry.refresh(name).await;
        entry
            .known()
            .map_or_else(|| Err(io::ErrorKind::TimedOut.into()), |(answer, _)| answer)
    }

    fn entry(&self, name: &str) -> Rc<Name> {
        let mut names = self.0.borrow_mut();
        if let Some(entry) = names.get(name) {
            return entry.clone();
        }
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.entry(name.to_owned()).or_default().clone()
    }
}

impl Name {
    /// The answer that may be used, and whether it needs no refresh.
    fn known(&self) -> Option<(io::Result<Rc<[IpAddr]>>, bool)> {
        let answer = self.answer.borrow().clone()?;
        let age = answer.at.elapsed();
        match answer.error {
            Some(words) => (age < FAILED).then(|| (Err(io::Error::other(words.to_string())), true)),
            None => (age < STALE).then(|| (Ok(answer.addresses), age < FRESH)),
        }
    }

    async fn refresh(&self, name: &str) {
        let Ok(_asking) = self.asking.try_lock() else {
            // Somebody asks already: their answer is ours.
            drop(self.asking.lock().await);
            return;
        };
        let found = tokio::net::lookup_host((name, 0)).await.map(|found| {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|a| a.ip().to_canonical()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses
        });
        let error = match found {
            Ok(addresses) if !addresses.is_empty() => {
                let answer = Answer {
                    addresses: addresses.into(),
                    at: Instant::now(),
                    error: None,
                };
                *self.answer.borrow_mut() = Some(answer);
                return;
            }
            Ok(_) => "the name has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        // A failure does not displace an answer that may still be used.
        if !matches!(self.known(), Some((Ok(_), _))) {
            let answer = Answer {
                addresses: Rc::new([]),
                at: Instant::now(),
                error: Some(error.into()),
            };
            *self.answer.borrow_mut() = Some(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local")]
    async fn finds_the_local_host_and_remembers_failures() {
        let resolver = Resolver::default();
        let found = resolver.lookup("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback));
        assert!(resolver.lookup("no-such-name.invalid").await.is_err());
        assert!(resolver.lookup("no-such-name.invalid").await.is_err());
    }
}
