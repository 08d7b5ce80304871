//! What is to be changed of a pod that gets a sidecar, or has one.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Pod, list, object};
use crate::inject::{
    CONTAINER, Defaults, Kind, Mistake, STATUS,
    annotation::{InitContainers, Wishes},
    asked::is_marked,
    container::Subject,
    patch::Operation,
    settings::Restarts,
};

impl Pod<'_> {
    /// The changes, and what somebody should know of them.
    pub(super) fn patch(
        &self,
        defaults: &Defaults,
    ) -> Result<(Vec<Operation>, Vec<String>), Mistake> {
        let annotations = object(self.metadata(), "annotations");
        let wishes = Wishes::of(annotations, defaults.istio_names)?;
        self.check(&wishes, defaults)?;
        let mut warnings: Vec<String> = wishes
            .ignored
            .iter()
            .map(|key| format!("{key} has no effect on a sidecar of ours"))
            .collect();
        if self.has_ours() {
            return Ok((self.moved(&wishes, defaults), warnings));
        }
        if is_marked(annotations) {
            warnings.push(format!(
                "it says that it was injected ({STATUS}) and has no container {CONTAINER}: it gets one again"
            ));
        }
        let workload = self.workload(&wishes);
        let grace = self.spec().get("terminationGracePeriodSeconds");
        let policy = self.spec().get("restartPolicy").and_then(Value::as_str);
        let restarts = Restarts::of(policy, list(self.spec(), "containers").len());
        if let (Kind::Container, Restarts::OnFailure, Some(alone)) =
            (defaults.kind, restarts, restarts.alone_for())
        {
            let minutes = alone.as_secs() / 60;
            warnings.push(format!(
                "its sidecar cannot tell a container that failed from one that is done, and ends {minutes} minutes after the last one: \
                 with restartPolicy Never it ends at once"
            ));
        }
        let subject = Subject {
            defaults,
            wishes: &wishes,
            workload: &workload,
            namespace: self.namespace,
            grace: grace.and_then(Value::as_u64).map(Duration::from_secs),
            restarts,
            probe_ports: self.probe_ports(),
        };
        let mut patch = self.marked(&subject);
        self.add_volumes(&subject, &mut patch)?;
        let place = Place::of(&wishes, defaults.kind);
        let into = place.list();
        if list(self.spec(), into).is_empty() {
            patch.push(Operation::add(&["spec", into], json!([])));
        }
        let at = if place == Place::LastInit { "-" } else { "0" };
        patch.push(Operation::add(&["spec", into, at], subject.container()?));
        Ok((patch, warnings))
    }

    /// The annotation that says what was put in.
    fn marked(&self, subject: &Subject<'_>) -> Vec<Operation> {
        let volumes: Vec<&str> = subject.volumes().iter().map(|(name, _)| *name).collect();
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"), "container": CONTAINER, "volumes": volumes,
        });
        let mut patch = Vec::new();
        if !self.metadata().is_object() {
            patch.push(Operation::add(&["metadata"], json!({})));
        }
        if !self.metadata()["annotations"].is_object() {
            patch.push(Operation::add(&["metadata", "annotations"], json!({})));
        }
        let keys = ["metadata", "annotations", STATUS];
        patch.push(Operation::add(&keys, status.to_string()));
        patch
    }

    fn add_volumes(
        &self,
        subject: &Subject<'_>,
        patch: &mut Vec<Operation>,
    ) -> Result<(), Mistake> {
        let present = list(self.spec(), "volumes");
        if present.is_empty() {
            patch.push(Operation::add(&["spec", "volumes"], json!([])));
        }
        for (name, volume) in subject.volumes() {
            match present.iter().find(|volume| volume["name"] == name) {
                None => patch.push(Operation::add(&["spec", "volumes", "-"], volume)),
                // Left over from an injection whose container was taken out.
                Some(same) if *same == volume => {}
                Some(_) => {
                    return Err(Mistake(format!(
                        "it has a volume called {name}, which is the name of ours: give it another one"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Others may have put init containers before or behind ours since: it goes where it belongs.
    fn moved(&self, wishes: &Wishes, defaults: &Defaults) -> Vec<Operation> {
        let place = Place::of(wishes, defaults.kind);
        let init = list(self.spec(), "initContainers");
        let ours = init
            .iter()
            .position(|container| container["name"] == CONTAINER);
        let wanted = match place {
            Place::FirstInit => 0,
            Place::LastInit => init.len().saturating_sub(1),
            Place::Container => return Vec::new(),
        };
        match ours {
            Some(at) if at != wanted => {
                vec![Operation::shift(&["spec", "initContainers"], at, wanted)]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn has_ours(&self) -> bool {
        let marked = is_marked(object(self.metadata(), "annotations"));
        marked
            && self
                .containers()
                .any(|(_, container)| container["name"] == CONTAINER)
    }
}

/// Where the sidecar's container goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FirstInit,
    LastInit,
    /// The first of the ordinary ones.
    Container,
}

impl Place {
    fn of(wishes: &Wishes, kind: Kind) -> Self {
        match (kind, wishes.init_containers) {
            (Kind::Container, _) => Self::Container,
            (Kind::Native, Some(InitContainers::Bypass)) => Self::LastInit,
            (Kind::Native, _) => Self::FirstInit,
        }
    }

    fn list(self) -> &'static str {
        match self {
            Self::Container => "containers",
            Self::FirstInit | Self::LastInit => "initContainers",
        }
    }
}
