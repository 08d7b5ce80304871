//! What a pod says of its sidecar, by annotations. Ours are listed in [`OURS`]; those of Istio's that mean the same are
//! understood as well, and ours count before them.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::{Identity, Mistake, PREFIX, STATUS, asked::INJECT, is_name, quantity};
use crate::model::Cidr;

/// Ours without the prefix, with Istio's name for it.
pub const OURS: [(&str, Option<&str>); 16] = [
    ("config", None),
    ("cpu", Some("sidecar.istio.io/proxyCPU")),
    ("cpu-limit", Some("sidecar.istio.io/proxyCPULimit")),
    (
        "exclude-inbound-ports",
        Some("traffic.sidecar.istio.io/excludeInboundPorts"),
    ),
    (
        "exclude-outbound-cidrs",
        Some("traffic.sidecar.istio.io/excludeOutboundIPRanges"),
    ),
    (
        "exclude-outbound-ports",
        Some("traffic.sidecar.istio.io/excludeOutboundPorts"),
    ),
    ("fail-rule", None),
    ("identity", None),
    ("image", None),
    (
        "include-inbound-ports",
        Some("traffic.sidecar.istio.io/includeInboundPorts"),
    ),
    (
        "include-outbound-cidrs",
        Some("traffic.sidecar.istio.io/includeOutboundIPRanges"),
    ),
    ("init-containers", None),
    ("log", None),
    ("memory", Some("sidecar.istio.io/proxyMemory")),
    ("memory-limit", Some("sidecar.istio.io/proxyMemoryLimit")),
    ("workload", None),
];

/// What Istio's say about steering and nothing here can do.
const ISTIO_STEERING: &str = "traffic.sidecar.istio.io/";
const ISTIO_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";

/// Ports or ranges of one annotation: more would not fit into the kernel half.
const LIST_MAX: usize = 1000;

/// Absent where the pod does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    pub image: Option<String>,
    pub workload: Option<String>,
    /// A ConfigMap.
    pub config: Option<String>,
    pub identity: Option<Identity>,
    pub log: Option<String>,
    pub init_containers: Option<InitContainers>,
    /// Whether the workload bypasses a sidecar that does not run.
    pub fail_open: Option<bool>,
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<Cidr>,
    pub exclude_inbound_ports: Vec<u16>,
    /// Only these are steered.
    pub include_outbound_cidrs: Option<Vec<Cidr>>,
    /// Only these are steered.
    pub include_inbound_ports: Option<Vec<u16>>,
    pub cpu: Option<Amount>,
    pub memory: Option<Amount>,
    pub cpu_limit: Option<Amount>,
    pub memory_limit: Option<Amount>,
    /// What is said and has no effect.
    pub ignored: Vec<String>,
}

/// Whether the init containers of the pod are behind the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitContainers {
    /// The sidecar comes before them.
    Steered,
    /// They have ended, or run already, when it comes.
    Bypass,
}

/// A quantity, or that there shall be none.
pub type Amount = Option<String>;

impl Wishes {
    /// # Errors
    ///
    /// An annotation of ours that does not exist, or one that says what it must not.
    pub fn of(annotations: &Map<String, Value>, istio_names: bool) -> Result<Self, Mistake> {
        refuse_unknown(annotations)?;
        let said = Said {
            annotations,
            istio_names,
        };
        Ok(Self {
            image: said.parsed("image", "the name of an image", |text| {
                let good = !text.is_empty() && text.len() <= 1000;
                (good && !text.contains(|c: char| c.is_whitespace() || c.is_control()))
                    .then(|| text.to_owned())
            })?,
            workload: said.parsed("workload", "a name such as orders", name)?,
            config: said.parsed("config", "the name of a ConfigMap", name)?,
            identity: said.parsed("identity", "none, csi or secret/NAME", |text| {
                Identity::from_str(text).ok()
            })?,
            log: said.parsed("log", "a filter such as debug or sidecar=debug", |text| {
                let filter = tracing_subscriber::EnvFilter::try_new(text);
                (!text.is_empty() && filter.is_ok()).then(|| text.to_owned())
            })?,
            init_containers: said.parsed(
                "init-containers",
                "steered or bypass",
                |text| match text {
                    "steered" => Some(InitContainers::Steered),
                    "bypass" => Some(InitContainers::Bypass),
                    _ => None,
                },
            )?,
            fail_open: said.parsed("fail-rule", "closed or open", |text| match text {
                "closed" => Some(false),
                "open" => Some(true),
                _ => None,
            })?,
            exclude_outbound_ports: said.ports("exclude-outbound-ports")?.unwrap_or_default(),
            exclude_outbound_cidrs: said.cidrs("exclude-outbound-cidrs")?.unwrap_or_default(),
            exclude_inbound_ports: said.ports("exclude-inbound-ports")?.unwrap_or_default(),
            include_outbound_cidrs: said.unless_all("include-outbound-cidrs", Said::cidrs)?,
            include_inbound_ports: said.unless_all("include-inbound-ports", Said::ports)?,
            cpu: said.amount("cpu")?,
            memory: said.amount("memory")?,
            cpu_limit: said.amount("cpu-limit")?,
            memory_limit: said.amount("memory-limit")?,
            ignored: said.ignored(),
        })
    }
}

/// The pod's annotations.
#[derive(Clone, Copy)]
struct Said<'a> {
    annotations: &'a Map<String, Value>,
    istio_names: bool,
}

impl<'a> Said<'a> {
    /// What `name` says, and under which key; ours before Istio's.
    fn text(self, name: &str) -> Result<Option<(String, &'a str)>, Mistake> {
        let istio = OURS.iter().find(|(ours, _)| *ours == name);
        let istio = istio
            .and_then(|(_, istio)| *istio)
            .filter(|_| self.istio_names);
        let keys = std::iter::once(format!("{PREFIX}{name}")).chain(istio.map(str::to_owned));
        for key in keys {
            match self.annotations.get(&key) {
                None => {}
                Some(Value::String(text)) => return Ok(Some((key, text.trim()))),
                Some(other) => {
                    return Err(Mistake::expected(
                        &key,
                        "a text in quotes",
                        &other.to_string(),
                    ));
                }
            }
        }
        Ok(None)
    }

    fn parsed<T>(
        self,
        name: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Mistake> {
        let said = self.text(name)?;
        let parsed = said
            .map(|(key, text)| parse(text).ok_or_else(|| Mistake::expected(&key, expected, text)));
        parsed.transpose()
    }

    fn ports(self, name: &str) -> Result<Option<Vec<u16>>, Mistake> {
        self.parsed(name, "ports such as 80,443", |text| {
            list(text, |port| match port.parse() {
                Ok(0) | Err(_) => None,
                Ok(port) => Some(port),
            })
        })
    }

    fn cidrs(self, name: &str) -> Result<Option<Vec<Cidr>>, Mistake> {
        let expected =
            "ranges of addresses such as 10.0.0.0/8,192.0.2.1, without bits beyond the prefix";
        self.parsed(name, expected, |text| list(text, |cidr| cidr.parse().ok()))
    }

    /// `*` is what holds without the annotation.
    fn unless_all<T>(
        self,
        name: &str,
        read: impl Fn(Self, &str) -> Result<Option<T>, Mistake>,
    ) -> Result<Option<T>, Mistake> {
        match self.text(name)? {
            Some((_, "*")) => Ok(None),
            _ => read(self, name),
        }
    }

    fn amount(self, name: &str) -> Result<Option<Amount>, Mistake> {
        self.parsed(
            name,
            "a quantity such as 100m or 64Mi, or none",
            |text| match text {
                "none" => Some(None),
                _ => quantity::thousandths(text).map(|_| Some(text.to_owned())),
            },
        )
    }

    /// Those of Istio's that would steer otherwise. Of its many others none is about what a sidecar of ours has.
    fn ignored(self) -> Vec<String> {
        let known = |key: &str| OURS.iter().any(|(_, istio)| *istio == Some(key));
        let all_ranges = matches!(
            self.text("include-outbound-cidrs"),
            Ok(None | Some((_, "*")))
        );
        let steering = self.annotations.keys().filter(|key| {
            let key = key.as_str();
            // In addition to the ranges, which are all.
            let harmless = key == ISTIO_OUTBOUND_PORTS && all_ranges;
            key.starts_with(ISTIO_STEERING) && !known(key) && !harmless
        });
        let steering = steering.filter(|_| self.istio_names);
        steering.cloned().collect()
    }
}

/// Of an empty text, none.
fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let all: Option<Vec<T>> = text.split(',').map(|each| parse(each.trim())).collect();
    all.filter(|all| all.len() <= LIST_MAX)
}

fn name(text: &str) -> Option<String> {
    is_name(text).then(|| text.to_owned())
}

/// A misspelt annotation would silently have no effect.
fn refuse_unknown(annotations: &Map<String, Value>) -> Result<(), Mistake> {
    for key in annotations.keys() {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let known = OURS.iter().any(|(ours, _)| *ours == name);
        if !known && key != INJECT && key != STATUS {
            let all: Vec<&str> = OURS.iter().map(|(ours, _)| *ours).collect();
            return Err(Mistake(format!(
                "there is no annotation {key}; there are, behind {PREFIX}: inject, {}",
                all.join(", ")
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wishes(annotations: Value) -> Result<Wishes, String> {
        let annotations = annotations.as_object().cloned().unwrap();
        Wishes::of(&annotations, true).map_err(|mistake| mistake.0)
    }

    #[test]
    fn ours_and_istios_names() {
        assert_eq!(wishes(json!({ "other/a": 1 })), Ok(Wishes::default()));
        let said = wishes(json!({
            "sidecar.internal/exclude-outbound-ports": "22, 3306",
            "traffic.sidecar.istio.io/excludeOutboundPorts": "1",
            "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.0.0.0/8,::1",
            "traffic.sidecar.istio.io/includeInboundPorts": "*",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
            "sidecar.istio.io/proxyCPU": "10m",
            "sidecar.internal/memory-limit": "none",
            "sidecar.internal/identity": "secret/orders",
            "sidecar.internal/init-containers": "bypass",
        }))
        .unwrap();
        assert_eq!(said.exclude_outbound_ports, [22, 3306]);
        assert_eq!(said.exclude_outbound_cidrs.len(), 2);
        assert_eq!(said.include_inbound_ports, None);
        assert_eq!(said.include_outbound_cidrs, Some(Vec::new()));
        assert_eq!(said.cpu, Some(Some("10m".to_owned())));
        assert_eq!(said.memory_limit, Some(None));
        assert_eq!(said.identity, Some(Identity::Secret("orders".to_owned())));
        assert_eq!(said.init_containers, Some(InitContainers::Bypass));
        assert!(said.ignored.is_empty());
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let ports = "traffic.sidecar.istio.io/includeOutboundPorts";
        assert!(wishes(json!({ ports: "80" })).unwrap().ignored.is_empty());
        let said = wishes(json!({
            ports: "80", "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
            "traffic.sidecar.istio.io/kubevirtInterfaces": "a"
        }));
        assert_eq!(said.unwrap().ignored.len(), 2);
    }

    #[test]
    fn mistakes() {
        for (key, value, says) in [
            ("exclude-outbound-ports", "80,x", "80,443"),
            ("exclude-outbound-ports", "0", "80,443"),
            ("exclude-outbound-ports", "70000", "80,443"),
            ("exclude-outbound-cidrs", "10.0.0.1/8", "10.0.0.0/8"),
            ("include-inbound-ports", "80,*", "80,443"),
            ("cpu", "much", "100m"),
            ("config", "A B", "ConfigMap"),
            ("image", "a b", "image"),
            ("log", "a=b=c", "filter"),
            ("identity", "secret/", "secret/NAME"),
            ("fail-rule", "ajar", "closed or open"),
            ("exclude-ports", "1", "exclude-outbound-ports"),
        ] {
            let error = wishes(json!({ format!("{PREFIX}{key}"): value })).unwrap_err();
            assert!(error.contains(key) && error.contains(says), "{error}");
        }
        let error = wishes(json!({ "sidecar.internal/cpu": 1 })).unwrap_err();
        assert!(error.contains("in quotes"), "{error}");
    }
}
