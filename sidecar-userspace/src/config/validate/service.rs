//! Services: no two claim the same name, host, or address and port.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{Report, Unique, identity};
use crate::{
    config::{
        error::{Mark, nearest},
        file::service as file,
        scalar::{Marked, Scalar, Setting},
        value::Host,
    },
    model::{Cidr, Endpoint, Protocol, Service, ServicePort},
};

/// The services of the file, by name and in its order.
pub(super) struct Services {
    list: Vec<Arc<Service>>,
    by_name: HashMap<Arc<str>, usize>,
}

impl Services {
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Service>> {
        self.list.get(*self.by_name.get(name)?)
    }

    /// The name that `name` was perhaps meant to be.
    pub(super) fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.list.iter().map(|service| &*service.name))
    }

    pub(super) fn into_list(self) -> Vec<Arc<Service>> {
        self.list
    }
}

pub(super) fn compile(
    report: &mut Report,
    files: Vec<file::Service>,
    default_connect: Duration,
    has_identity: bool,
) -> Services {
    let mut services = Services {
        list: Vec::with_capacity(files.len()),
        by_name: HashMap::new(),
    };
    let mut claims = Claims {
        has_identity,
        ..Claims::default()
    };
    for file in files {
        if let Some(service) = claims.service(report, file, default_connect) {
            let position = services.list.len();
            services.by_name.insert(service.name.clone(), position);
            services.list.push(Arc::new(service));
        }
    }
    services
}

/// What services have claimed so far.
#[derive(Default)]
struct Claims {
    names: Unique<String>,
    hosts: Unique<String>,
    addresses: Unique<(Cidr, u16)>,
    /// Whether the workload has an identity.
    has_identity: bool,
}

impl Claims {
    /// `None` if it has no name by which others could refer to it.
    fn service(
        &mut self,
        report: &mut Report,
        file: file::Service,
        default_connect: Duration,
    ) -> Option<Service> {
        let name_mark = file.name.mark;
        let name = report.value(file.name);
        let hosts = self.hosts(report, file.hosts, name.as_deref(), name_mark);
        let ports = report.ports(file.ports, &BTreeSet::new());
        let addresses = self.addresses(report, file.addresses, &ports);
        let endpoints = endpoints(report, file.endpoints, ports.len());
        let mut connect_timeout = default_connect;
        report.set(
            &mut connect_timeout,
            file.timeouts.unwrap_or_default().connect,
        );

        let tls = identity::service(report, file.tls, self.has_identity);
        let name = name?;
        let taken = || ("a name that no other service has", name.clone());
        let free = self.names.claim(report, name.clone(), name_mark, taken);
        let with_protocol = |(port, protocol)| ServicePort { port, protocol };
        free.then(|| Service {
            name: name.into(),
            hosts,
            addresses,
            ports: ports.into_iter().map(with_protocol).collect(),
            endpoints,
            connect_timeout,
            tls,
        })
    }

    fn hosts(
        &mut self,
        report: &mut Report,
        hosts: Option<Vec<Setting<Host>>>,
        name: Option<&str>,
        name_mark: Mark,
    ) -> Vec<String> {
        let named: Vec<(Mark, String)> = match hosts {
            Some(hosts) => hosts
                .into_iter()
                .filter_map(|host| Some((host.mark, report.value(host)?)))
                .collect(),
            // Not every name of a service is one that can stand in a `Host` header.
            None => name
                .and_then(|name| Host::parse(name).ok())
                .map(|host| (name_mark, host))
                .into_iter()
                .collect(),
        };
        let mut free = |(mark, host): &(Mark, String)| {
            let taken = || ("a host that no service has yet", host.clone());
            self.hosts.claim(report, host.clone(), *mark, taken)
        };
        let hosts = named.into_iter().filter(|named| free(named));
        hosts.map(|(_, host)| host).collect()
    }

    fn addresses(
        &mut self,
        report: &mut Report,
        list: Option<Marked<Vec<Setting<Cidr>>>>,
        ports: &BTreeMap<u16, Protocol>,
    ) -> Vec<Cidr> {
        let Some(Marked {
            mark: list_mark,
            value: list,
        }) = list
        else {
            return Vec::new();
        };
        if ports.is_empty() && !list.is_empty() {
            let expected =
                "ports beside the addresses, since a service claims addresses on its ports only";
            report.expected(list_mark, expected, "no ports");
        }
        let within_bound = report.within_bound(list_mark, list.len().saturating_mul(ports.len()));
        let mut addresses = Vec::with_capacity(list.len());
        for setting in list {
            let mark = setting.mark;
            let Some(cidr) = report.value(setting) else {
                continue;
            };
            let claimed = if within_bound {
                Some(ports.keys())
            } else {
                None
            };
            // One port in conflict says enough about an address.
            claimed.into_iter().flatten().all(|port| {
                let found = || {
                    let expected = format!("an address that no service has on port {port} yet");
                    (expected, cidr.to_string())
                };
                self.addresses.claim(report, (cidr, *port), mark, found)
            });
            addresses.push(cidr);
        }
        addresses
    }
}

fn endpoints(
    report: &mut Report,
    list: Option<Marked<Vec<file::Endpoint>>>,
    ports: usize,
) -> Vec<Endpoint> {
    let Some(Marked { mark, value: list }) = list else {
        return Vec::new();
    };
    report.within_bound(mark, list.len().saturating_mul(ports.max(1)));
    let before = report.errors.len();
    let mut endpoints = Vec::with_capacity(list.len());
    for file in list {
        let address = report.value(file.address);
        let port = file.port.and_then(|port| report.value(port));
        let mut weight = 1;
        report.set(&mut weight, file.weight);
        endpoints.extend(address.map(|address| Endpoint {
            address,
            port,
            weight,
        }));
    }
    let all_zero = endpoints.iter().all(|endpoint| endpoint.weight == 0);
    if all_zero && !endpoints.is_empty() && report.errors.len() == before {
        report.expected(
            mark,
            "an endpoint whose weight is not 0",
            "only weights of 0",
        );
    }
    endpoints
}
