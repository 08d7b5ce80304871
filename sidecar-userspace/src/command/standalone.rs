//! The cgroups of a sidecar that nobody else arranges: one for the application, one for the proxy, so that the
//! kernel tells them apart.
//!
//! ```text
//! <ours>/sidecar-<name>/app     the application (unless --cgroup names another)
//! <ours>/sidecar-<name>/proxy   the proxy
//! ```

use std::path::Path;

use anyhow::Result;
use tracing::warn;

use super::Usage;
use crate::{
    kernel::{
        attach::{AttachError, Enrolment, own_namespace},
        proof::{Finding, Reach},
        workload::Subject,
    },
    model::Steering,
    sys::cgroup::{Cgroup, CgroupError},
};

pub struct Cgroups {
    /// Where we came from and return to.
    home: Cgroup,
    parent: Cgroup,
    pub application: Cgroup,
    pub proxy: Cgroup,
    /// The application's cgroup is ours to remove.
    own_application: bool,
}

impl Cgroups {
    /// `existing`: the application's cgroup, if it has one already.
    pub fn create(name: &str, existing: Option<&Path>) -> Result<Self> {
        let home = Cgroup::own()?;
        let given = existing
            .map(Cgroup::open)
            .transpose()
            .map_err(|error| Usage(format!("--cgroup: {error}")))?;
        if let Some(given) = &given {
            refuse_itself(&home, name, given)?;
        }
        let parent = home.child(&format!("sidecar-{name}"))?;
        let application = match &given {
            Some(given) => given.clone(),
            None => parent.child("app")?,
        };
        let proxy = parent.child("proxy")?;
        Ok(Self {
            home,
            parent,
            application,
            proxy,
            own_application: given.is_none(),
        })
    }

    /// Whether the application's cgroup was made for it, so that all in it ends with the sidecar.
    pub fn owns_application(&self) -> bool {
        self.own_application
    }

    /// Goes back home and removes what is ours. The application must be gone.
    pub fn remove(self) {
        if let Err(error) = self.try_remove() {
            warn!(%error, "a cgroup is left behind");
        }
    }

    /// Removes what nobody uses, after a start that failed.
    pub fn remove_if_empty(self) {
        // What is in use cannot be removed, and is not ours then.
        let _ = self.try_remove();
    }

    fn try_remove(&self) -> Result<(), CgroupError> {
        self.home.enter()?;
        self.proxy.remove()?;
        if self.own_application {
            self.application.remove_tree()?;
        }
        self.parent.remove()
    }
}

/// What came of trying redirect on real sockets.
pub struct Trial {
    pub parts: Vec<Finding>,
    /// How far it may go.
    pub reach: Reach,
    /// What rules for destinations need could be attached; why packet sockets could not be kept from sending, if so.
    pub egress: Result<Option<String>, AttachError>,
}

/// Attaches for a workload of our own, tries redirect on real sockets, and detaches again. `base`: the pin directory.
pub fn trial(base: &Path, steering: &Steering, cgroups: &Cgroups) -> Result<Trial> {
    let namespace = own_namespace()?;
    let subject = Subject {
        application: &cgroups.application,
        proxy: &cgroups.proxy,
        namespace: &namespace,
        steering,
    };
    let mut enrolment = Enrolment::begin(base, &subject)?;
    let entered = cgroups.proxy.enter().map_err(AttachError::from);
    let parts = entered.and_then(|()| enrolment.self_test(steering));
    let reach = enrolment.reach().clone();
    let egress = enrolment.try_egress(steering);
    // Whatever came of it: fail rule `closed` would have something stay.
    enrolment.leave()?;
    Ok(Trial {
        parts: parts?,
        reach,
        egress,
    })
}

/// An application's cgroup with the sidecar in it would have the sidecar's own connections steered to itself.
fn refuse_itself(home: &Cgroup, name: &str, given: &Cgroup) -> Result<(), Usage> {
    let proxy = home.path().join(format!("sidecar-{name}/proxy"));
    let (path, home) = (given.path(), home.path());
    let what = if path == home {
        "this process itself".to_owned()
    } else if proxy.starts_with(path) {
        format!("the sidecar's own cgroup, {}", proxy.display())
    } else if path.starts_with(&proxy) {
        return Err(Usage(format!(
            "--cgroup: {} belongs to the sidecar: name the cgroup of the application",
            path.display()
        )));
    } else {
        return Ok(());
    };
    let outside = match path.parent() {
        // The root of all has no outside.
        Some(parent) if Cgroup::open(parent).is_ok() => parent.join("sidecars"),
        _ => {
            return Err(Usage(format!(
                "--cgroup: {} contains {what}, and every process: put the application into a cgroup of its own",
                path.display()
            )));
        }
    };
    let outside = outside.display();
    Err(Usage(format!(
        "--cgroup: {} contains {what}. Start the sidecar from a cgroup outside of it: \
         mkdir -p {outside} && echo $$ > {outside}/cgroup.procs, and again",
        path.display()
    )))
}
