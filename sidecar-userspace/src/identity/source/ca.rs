//! An identity that the sidecar signs itself with the embedded authority, renewed after two thirds of its life.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use super::{Renew, SourceError};
use crate::{
    identity::{Bundles, Material, SpiffeId, ca::Ca},
    model::{Identity, IdentitySource, Workload},
};

/// After a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Of the time until renewal, so that sidecars that were started together do not renew together.
const JITTER: f64 = 0.1;

pub(super) fn issue(identity: &Identity, workload: &Workload) -> Result<Material, SourceError> {
    let IdentitySource::Ca {
        directory,
        id,
        lifetime,
    } = &identity.source
    else {
        return Err(crate::identity::material::MaterialError::Empty.into());
    };
    let ca = Ca::load(directory)?;
    let id = match id {
        Some(id) => id.clone(),
        None => {
            SpiffeId::of_service_account(ca.trust_domain(), &workload.namespace, &workload.name)?
        }
    };
    let svid = ca.issue(&id, *lifetime)?.svid()?;
    let mut bundles = Bundles::default();
    bundles.add(ca.trust_domain(), ca.roots().to_vec())?;
    super::federate(&mut bundles, &identity.federation)?;
    Ok(Material { svid, bundles })
}

/// How long a certificate lasts, seen from when it was issued.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life(Duration);

impl Life {
    pub fn of(material: &Material) -> Self {
        Self(material.svid.facts.left(SystemTime::now()))
    }

    /// Two thirds of it, less up to a tenth; `chance` from 0 to 1.
    fn until_renewal(self, chance: f64) -> Duration {
        (self.0 * 2 / 3).mul_f64(1.0 - JITTER * chance)
    }
}

/// A thread that renews in time. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Renewal {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Renewal {
    pub fn start(renew: Arc<Renew>, first: Life) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name("identity-renewal".to_owned())
            .spawn(move || {
                let mut wait = first.until_renewal(fastrand::f64());
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    wait = match renew.now() {
                        Some(life) => life.until_renewal(fastrand::f64()),
                        None => RETRY,
                    };
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that renewed the identity had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_two_thirds_or_a_little_before() {
        let life = Life(Duration::from_secs(90));
        assert_eq!(life.until_renewal(0.0), Duration::from_secs(60));
        assert_eq!(life.until_renewal(1.0), Duration::from_secs(54));
        assert_eq!(Life(Duration::ZERO).until_renewal(0.5), Duration::ZERO);
    }
}
