//! Where a sidecar's configuration comes from: a file, and what its pod puts over that.

use std::{io, path::PathBuf};

use super::{ConfigErrors, file, over, read, shape, validate};
use crate::model::Snapshot;

/// What mistakes in the settings of the pod are reported under.
const SETTINGS: &str = "SIDECAR_SETTINGS";

/// Read at start, and again at each reload.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Without one the built-in settings apply.
    pub file: Option<PathBuf>,
    /// A file that does not exist counts as an empty one.
    pub optional: bool,
    /// YAML that is put over the file's; see `over`.
    pub settings: Option<String>,
}

impl Source {
    /// Reads and compiles it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or every mistake in it or in the settings.
    pub fn load(&self) -> Result<Snapshot, ConfigErrors> {
        let (name, text) = self.text()?;
        let failed = |errors| ConfigErrors::new(&name, errors);
        let file: file::File = shape::parse(&text).map_err(|error| failed(vec![error]))?;
        let file = match &self.settings {
            Some(settings) => {
                let over =
                    over::parse(settings).map_err(|errors| ConfigErrors::new(SETTINGS, errors))?;
                over.put_over(file)
            }
            None => file,
        };
        validate::compile(file).map_err(failed)
    }

    fn text(&self) -> Result<(String, String), ConfigErrors> {
        let Some(path) = &self.file else {
            return Ok((SETTINGS.to_owned(), String::new()));
        };
        let name = path.display().to_string();
        match read(path) {
            Ok(text) => Ok((name, text)),
            Err(error) if self.optional && error.kind() == io::ErrorKind::NotFound => {
                Ok((name, String::new()))
            }
            Err(error) => Err(ConfigErrors::unreadable(path, &error)),
        }
    }
}

impl From<Option<PathBuf>> for Source {
    fn from(file: Option<PathBuf>) -> Self {
        Self {
            file,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{FailRule, InboundCapture, Protocol};

    const FILE: &str = "\
workload: { name: shared, namespace: shop }
outbound: { exclude: { ports: [22], cidrs: [192.0.2.0/24] }, ports: [{ port: 5432, protocol: tcp }] }
inbound: { ports: [{ port: 8080, protocol: http }, { port: 9100 }] }
listeners: { admin: 16000 }
";

    fn loaded(file: &str, settings: &str) -> Result<Snapshot, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar.yaml");
        std::fs::write(&path, file).unwrap();
        let source = Source {
            file: Some(path),
            optional: false,
            settings: Some(settings.to_owned()),
        };
        source.load().map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_pod_puts_its_settings_over_the_file() {
        let snapshot = loaded(
            FILE,
            "workload: { name: orders }\nfailRule: open\nlifecycle: { exitWhenAlone: false }\n\
             outbound: { exclude: { ports: [5432], cidrs: [\"::/0\"] } }\ninbound: { exclude: { ports: [9100] } }\n\
             listeners: { health: \"[::]:15021\" }\n",
        )
        .unwrap();
        assert_eq!(snapshot.workload.name, "orders");
        assert_eq!(snapshot.workload.namespace, "shop");
        assert_eq!(snapshot.fail_rule, FailRule::Open);
        assert!(!snapshot.lifecycle.exit_when_alone);
        // Lists grow; what the pod excludes is no longer declared.
        let outbound = &snapshot.outbound;
        assert_eq!(outbound.exclude_ports, BTreeSet::from([22, 5432]));
        assert_eq!(outbound.exclude_cidrs.len(), 2);
        assert!(outbound.ports.is_empty());
        let inbound: Vec<_> = snapshot.inbound.ports.keys().copied().collect();
        assert_eq!(inbound, [8080]);
        assert_eq!(snapshot.listeners.admin, 16000);
        assert_eq!(snapshot.listeners.health, "[::]:15021".parse().unwrap());
    }

    #[test]
    fn listed_ports_are_the_pods_with_what_the_file_declares_for_them() {
        let snapshot = loaded(
            FILE,
            "inbound: { capture: listed, ports: [{ port: 8080 }, { port: 81 }] }",
        );
        let inbound = snapshot.unwrap().inbound;
        assert_eq!(inbound.capture, InboundCapture::Listed);
        let ports: Vec<_> = inbound
            .ports
            .iter()
            .map(|(at, it)| (*at, it.protocol))
            .collect();
        assert_eq!(ports, [(81, Protocol::Auto), (8080, Protocol::Http)]);
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        let error = loaded("redirect: { enabled: x }", "failRule: open").unwrap_err();
        assert!(error.contains("sidecar.yaml:1:22"), "{error}");
        let error = loaded(FILE, "\nfailRule: opne").unwrap_err();
        assert!(error.contains("SIDECAR_SETTINGS:2:11"), "{error}");
        // Settings are not a second configuration.
        let error = loaded(FILE, "services: []").unwrap_err();
        assert!(error.contains("SIDECAR_SETTINGS:1:1"), "{error}");
    }

    #[test]
    fn an_optional_file_may_be_absent_and_not_unreadable() {
        let directory = tempfile::tempdir().unwrap();
        let mut source = Source::from(Some(directory.path().join("absent.yaml")));
        assert!(source.load().is_err());
        source.optional = true;
        assert_eq!(source.load().unwrap(), Snapshot::builtin());
        source.file = Some(directory.path().to_owned());
        assert!(source.load().is_err());
    }
}
