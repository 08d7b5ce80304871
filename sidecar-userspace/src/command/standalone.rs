//! The cgroups of a sidecar that nobody else arranges: one for the application, one for the proxy, so that the
//! kernel tells them apart.
//!
//! ```text
//! <ours>/sidecar-<name>/app     the application (unless --cgroup names another)
//! <ours>/sidecar-<name>/proxy   the proxy
//! ```

use std::path::Path;

use anyhow::{Result, bail};
use tracing::warn;

use crate::sys::cgroup::{Cgroup, CgroupError};

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
        let given = existing.map(Cgroup::open).transpose()?;
        if given.as_ref().is_some_and(|given| *given == home) {
            bail!(
                "this process is itself in {}: start the sidecar from another cgroup",
                home.path().display()
            );
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
            self.application.remove()?;
        }
        self.parent.remove()
    }
}
