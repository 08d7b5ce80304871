//! Balance: which endpoint takes the connection or request.
//!
//! Two candidates are drawn by weight and the one with less open work on this worker is taken (power of two
//! choices). An address that just failed rests for a while, unless all do. Names are resolved, and each of
//! their addresses is a candidate.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Reason, Worker,
    route::{Pick, Target},
};
use crate::model::{Endpoint, EndpointAddress, Service};

/// Rest after the first failure; doubles with each further one.
const FIRST_REST: Duration = Duration::from_secs(1);

/// Rest at most.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Addresses whose load one worker remembers; unused ones are forgotten beyond that.
const MAX_ADDRESSES: usize = 8192;

/// A worker's view of the endpoints.
#[derive(Debug, Default)]
pub struct Balancer {
    addresses: RefCell<HashMap<SocketAddr, Rc<AddressState>>>,
}

#[derive(Debug, Default)]
struct AddressState {
    /// Connections or requests that hold a [`Load`].
    open: Cell<u32>,
    failures: Cell<u32>,
    rests_until: Cell<Option<Instant>>,
}

/// One address to try.
#[derive(Debug)]
pub struct Candidate {
    pub address: SocketAddr,
    pub load: Load,
}

/// Counts as open work on its address until dropped.
#[derive(Debug)]
pub struct Load(Option<Rc<AddressState>>);

/// The candidates for one connection or request, best first; each address comes once.
#[derive(Debug)]
pub struct Candidates<'a> {
    worker: &'a Worker,
    target: &'a Target,
    tried: Vec<SocketAddr>,
    /// Indices of endpoints whose name could not be resolved or has no further address.
    exhausted: Vec<usize>,
    /// The resolver's words, if that is why there is no candidate.
    pub resolve_error: Option<String>,
}

/// The candidates for `target`.
pub fn candidates<'a>(worker: &'a Worker, target: &'a Target) -> Candidates<'a> {
    Candidates {
        worker,
        target,
        tried: Vec::new(),
        exhausted: Vec::new(),
        resolve_error: None,
    }
}

impl Candidates<'_> {
    /// The next one, `Ok(None)` when each was given out once. Errors if there was none at all, with
    /// [`Reason::NoEndpoint`] or [`Reason::NameResolution`].
    pub async fn next(&mut self) -> Result<Option<Candidate>, Reason> {
        let address = match (self.target.pick, &self.target.service) {
            (Pick::Address(address), _) => (!self.tried.contains(&address)).then_some(address),
            (Pick::Endpoint { .. }, None) => None,
            (Pick::Endpoint { port }, Some(service)) => self.choose(service, port).await,
        };
        let Some(address) = address else {
            return match (self.tried.is_empty(), &self.resolve_error) {
                (false, _) => Ok(None),
                (true, Some(_)) => Err(Reason::NameResolution),
                (true, None) => Err(Reason::NoEndpoint),
            };
        };
        self.tried.push(address);
        let load = match self.target.service {
            Some(_) => self.worker.balancer.load(address),
            None => Load(None),
        };
        Ok(Some(Candidate { address, load }))
    }

    async fn choose(&mut self, service: &Arc<Service>, port: u16) -> Option<SocketAddr> {
        loop {
            let (index, endpoint) = self.draw(service, port)?;
            let endpoint_port = endpoint.port.unwrap_or(port);
            let first = match &endpoint.address {
                EndpointAddress::Ip(ip) => Some(SocketAddr::new(*ip, endpoint_port)),
                EndpointAddress::Name(name) => {
                    match Box::pin(self.worker.resolver.lookup(name)).await {
                        Ok(addresses) => self.best_of(&addresses, endpoint_port),
                        Err(error) => {
                            self.resolve_error = Some(error.to_string());
                            None
                        }
                    }
                }
            };
            let Some(first) = first else {
                self.exhausted.push(index);
                continue;
            };
            // The second draw may be the first one again: at no load, shares must follow the weights.
            let second = self
                .draw(service, port)
                .and_then(|(_, second)| match second.address {
                    EndpointAddress::Ip(ip) => Some((
                        SocketAddr::new(ip, second.port.unwrap_or(port)),
                        second.weight,
                    )),
                    // Not worth a look-up.
                    EndpointAddress::Name(_) => None,
                });
            return Some(second.map_or(first, |second| {
                self.worker
                    .balancer
                    .better((first, endpoint.weight), second)
            }));
        }
    }

    /// An endpoint by weight among those that are left; one that rests only if all do.
    fn draw<'s>(&self, service: &'s Service, port: u16) -> Option<(usize, &'s Endpoint)> {
        let awake = self.draw_from(
            service,
            |address| !self.worker.balancer.rests(address),
            port,
        );
        awake.or_else(|| self.draw_from(service, |_| true, port))
    }

    fn draw_from<'s>(
        &self,
        service: &'s Service,
        may: impl Fn(SocketAddr) -> bool,
        port: u16,
    ) -> Option<(usize, &'s Endpoint)> {
        let left = |(index, endpoint): &(usize, &Endpoint)| match endpoint.address {
            EndpointAddress::Name(_) => !self.exhausted.contains(index),
            EndpointAddress::Ip(ip) => {
                let address = SocketAddr::new(ip, endpoint.port.unwrap_or(port));
                !self.tried.contains(&address) && may(address)
            }
        };
        let all = || service.endpoints.iter().enumerate().filter(left);
        let total: u64 = all().map(|(_, endpoint)| u64::from(endpoint.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut point = fastrand::u64(..total);
        all().find(|(_, endpoint)| {
            let weight = u64::from(endpoint.weight);
            let hit = point < weight;
            point = point.saturating_sub(weight);
            hit
        })
    }

    /// Of two addresses drawn from those that were not tried yet, the better one.
    fn best_of(&self, addresses: &[IpAddr], port: u16) -> Option<SocketAddr> {
        let left = || {
            let all = addresses.iter().map(|ip| SocketAddr::new(*ip, port));
            all.filter(|address| !self.tried.contains(address))
        };
        match left().count() {
            0 => None,
            1 => left().next(),
            count => {
                let first = left().nth(fastrand::usize(..count))?;
                let second = left().nth(fastrand::usize(..count))?;
                Some(self.worker.balancer.better((first, 1), (second, 1)))
            }
        }
    }
}

impl Balancer {
    /// Counts work on `address` until the result is dropped.
    pub fn load(&self, address: SocketAddr) -> Load {
        let mut addresses = self.addresses.borrow_mut();
        if addresses.len() >= MAX_ADDRESSES {
            addresses.retain(|_, state| state.open.get() > 0);
        }
        let state = addresses.entry(address).or_default().clone();
        state.open.set(state.open.get().saturating_add(1));
        Load(Some(state))
    }

    fn rests(&self, address: SocketAddr) -> bool {
        self.addresses
            .borrow()
            .get(&address)
            .is_some_and(|state| state.rests())
    }

    /// The one that does not rest, then the one with less open work for its weight, then `first`.
    fn better(&self, first: (SocketAddr, u32), second: (SocketAddr, u32)) -> SocketAddr {
        let addresses = self.addresses.borrow();
        let rank = |address: SocketAddr, other_weight: u32| {
            let state = addresses.get(&address);
            state.map_or((false, 0), |state| {
                (
                    state.rests(),
                    u64::from(state.open.get()) * u64::from(other_weight),
                )
            })
        };
        let better = rank(second.0, first.1) < rank(first.0, second.1);
        if better { second.0 } else { first.0 }
    }
}

impl Load {
    /// The address did not accept the work: it rests.
    pub fn failed(&self) {
        let Some(state) = &self.0 else { return };
        let failures = state.failures.get().saturating_add(1);
        state.failures.set(failures);
        let rest = FIRST_REST
            .saturating_mul(1 << failures.saturating_sub(1).min(5))
            .min(LONGEST_REST);
        state.rests_until.set(Some(Instant::now() + rest));
    }

    /// The address accepted the work: earlier failures are forgotten.
    pub fn succeeded(&self) {
        let Some(state) = &self.0 else { return };
        state.failures.set(0);
        state.rests_until.set(None);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.open.set(state.open.get().saturating_sub(1));
        }
    }
}

impl AddressState {
    fn rests(&self) -> bool {
        self.rests_until
            .get()
            .is_some_and(|until| until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServicePort};

    fn service(endpoints: &[(&str, u32)]) -> Arc<Service> {
        let endpoint = |(address, weight): &(&str, u32)| Endpoint {
            address: match address.parse() {
                Ok(ip) => EndpointAddress::Ip(ip),
                Err(_) => EndpointAddress::Name((*address).to_owned()),
            },
            port: None,
            weight: *weight,
        };
        Arc::new(Service {
            name: "s".into(),
            hosts: vec![],
            addresses: vec![],
            ports: vec![ServicePort {
                port: 80,
                protocol: Protocol::Http,
            }],
            endpoints: endpoints.iter().map(endpoint).collect(),
            connect_timeout: Duration::from_secs(1),
            tls: None,
        })
    }

    async fn next(candidates: &mut Candidates<'_>) -> Option<Candidate> {
        candidates.next().await.unwrap()
    }

    #[tokio::test(flavor = "local")]
    async fn each_comes_once_and_weight_0_never() {
        let worker = Worker::for_tests();
        let target = Target::of_service(
            &service(&[("192.0.2.1", 1), ("192.0.2.2", 0), ("192.0.2.3", 9)]),
            80,
        );
        let mut all = candidates(&worker, &target);
        let mut seen = vec![
            next(&mut all).await.unwrap().address,
            next(&mut all).await.unwrap().address,
        ];
        seen.sort();
        assert_eq!(
            seen,
            [
                "192.0.2.1:80".parse().unwrap(),
                "192.0.2.3:80".parse().unwrap()
            ]
        );
        assert!(next(&mut all).await.is_none());
    }

    #[tokio::test(flavor = "local")]
    async fn less_loaded_and_awake_ones_are_preferred() {
        let worker = Worker::for_tests();
        let target = Target::of_service(&service(&[("192.0.2.1", 1), ("192.0.2.2", 1)]), 80);
        let mut held: HashMap<SocketAddr, Vec<Candidate>> = HashMap::new();
        for _ in 0..200 {
            let candidate = next(&mut candidates(&worker, &target)).await.unwrap();
            held.entry(candidate.address).or_default().push(candidate);
        }
        assert!(
            held.values().all(|c| (80..=120).contains(&c.len())),
            "uneven"
        );
        let tired: SocketAddr = "192.0.2.1:80".parse().unwrap();
        held[&tired][0].load.failed();
        for _ in 0..50 {
            assert_ne!(
                next(&mut candidates(&worker, &target))
                    .await
                    .unwrap()
                    .address,
                tired
            );
        }
        held[&tired][0].load.succeeded();
        held.remove(&tired);
        let mut hits = 0;
        for _ in 0..100 {
            hits += usize::from(
                next(&mut candidates(&worker, &target))
                    .await
                    .unwrap()
                    .address
                    == tired,
            );
        }
        assert!(
            hits > 50,
            "an idle endpoint takes three quarters of two draws, here {hits} of 100"
        );
    }

    #[tokio::test(flavor = "local")]
    async fn shares_follow_weights() {
        let worker = Worker::for_tests();
        let target = Target::of_service(&service(&[("192.0.2.1", 9), ("192.0.2.2", 1)]), 80);
        let small: SocketAddr = "192.0.2.2:80".parse().unwrap();
        let mut hits = 0;
        for _ in 0..2000 {
            hits += usize::from(
                next(&mut candidates(&worker, &target))
                    .await
                    .unwrap()
                    .address
                    == small,
            );
        }
        assert!(
            (120..300).contains(&hits),
            "{hits} of 2000 at weight 1 of 10"
        );
    }

    #[tokio::test(flavor = "local")]
    async fn no_endpoint_and_no_name_are_told_apart() {
        let worker = Worker::for_tests();
        let target = Target::of_service(&service(&[("192.0.2.1", 0)]), 80);
        assert_eq!(
            candidates(&worker, &target).next().await.unwrap_err(),
            Reason::NoEndpoint
        );
        let target = Target::of_service(&service(&[("no-such-name.invalid", 1)]), 80);
        assert_eq!(
            candidates(&worker, &target).next().await.unwrap_err(),
            Reason::NameResolution
        );
        let target = Target::of_service(
            &service(&[("localhost", 1), ("no-such-name.invalid", 9)]),
            80,
        );
        let found = candidates(&worker, &target).next().await.unwrap().unwrap();
        assert!(found.address.ip().is_loopback());
    }
}
