//! Pods that change by themselves: they end, lose their sidecar for good, or are left by all but it.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{State, say};
use crate::{enrol::message::Reply, model::FailRule, sys::cgroup::Cgroup};

/// How long after the agent's own start a sidecar may take to come back before its pod counts as without one.
const COME_BACK: Duration = Duration::from_secs(15);

/// How often leftovers in the maps are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(10);

/// What starting a process takes at least.
const A_PROCESS: Duration = Duration::from_micros(300);

impl State {
    /// Looks after pods that have changed by themselves; to be called again and again.
    pub fn look_after(&mut self, company: bool) {
        let mut gone = Vec::new();
        for (id, pod) in &mut self.pods {
            // The path may be another cgroup's by now.
            if pod.cgroup.id().ok() != Some(*id) {
                gone.push((*id, "its cgroup is gone"));
                continue;
            }
            match &pod.sidecar {
                Some(sidecar) if company => {
                    let present = has_company(&pod.cgroup, &sidecar.cgroup)
                        || pod.company.is_none_or(|had| !had)
                            && had_company(&pod.cgroup, &sidecar.cgroup, &mut pod.taken_by_others);
                    if pod.company != Some(present) && say(&sidecar.to, Reply::Company { present })
                    {
                        pod.company = Some(present);
                    }
                }
                Some(_) => {}
                None if !pod.cgroup.populated() => gone.push((*id, "nobody is left in it")),
                None => {
                    let waited = pod
                        .alone_since
                        .is_none_or(|since| since.elapsed() > COME_BACK);
                    if waited && pod.steering.fail_rule == FailRule::Open {
                        gone.push((*id, "no sidecar came back"));
                    }
                }
            }
            if !pod.steering.exclude_cgroups.is_empty() || pod.attached.has_exclusions() {
                let patterns = &pod.steering.exclude_cgroups;
                if let Err(error) = self.node.exclude(&mut pod.attached, &pod.cgroup, patterns) {
                    warn!(workload = pod.steering.name, %error, "cgroups cannot be excluded");
                }
            }
        }
        for pod in self.pods.values_mut() {
            self.node
                .look(&mut pod.attached, &pod.cgroup, &pod.steering);
        }
        self.node.make_ahead(self.pods.len());
        if self.garbage_since.elapsed() > COLLECT_EVERY {
            self.garbage_since = Instant::now();
            let pods = self.pods.values().map(|pod| &pod.attached);
            self.node.collect_garbage(pods);
        }
        for (id, why) in gone {
            self.remove(id, why);
        }
        self.detached.forget_gone();
    }

    /// Cgroups of former sidecars of the pod in which nothing runs any more: their ids, or they themselves, may be anybody's one
    /// day, and the pod has one proxy.
    pub(super) fn forget_gone_proxies(&mut self, id: u64) {
        let Some(pod) = self.pods.get(&id) else {
            return;
        };
        let known = self.node.proxies_of(&pod.attached);
        let current = pod.sidecar.as_ref().map(|sidecar| sidecar.cgroup_id);
        let there: BTreeSet<u64> = pod
            .cgroup
            .children()
            .iter()
            .filter(|child| child.populated())
            .filter_map(|c| c.id().ok())
            .collect();
        for old in known {
            if Some(old) != current
                && !there.contains(&old)
                && let Err(error) = self.node.forget_proxy(&pod.attached, old)
            {
                warn!(%error, "a former sidecar's cgroup stays known");
            }
        }
    }
}

/// Whether anything but the sidecar and what keeps pods together runs in the pod.
fn has_company(pod: &Cgroup, sidecar: &Cgroup) -> bool {
    let own = pod.processes().unwrap_or_default();
    let others = pod.children().into_iter().filter(|child| child != sidecar);
    own.iter().any(is_company)
        || others
            .filter(Cgroup::populated)
            .any(|child| child.all_processes().iter().any(is_company))
}

/// Whether anything has run in the pod since the last look, or the enrolment, and has gone: a Job may take less than a second.
fn had_company(pod: &Cgroup, sidecar: &Cgroup, before: &mut Option<Duration>) -> bool {
    let now = taken_by_others(pod, sidecar);
    let had = matches!((now, *before), (Some(now), Some(before)) if now > before + A_PROCESS);
    if had {
        *before = now;
    }
    had
}

/// CPU time that others in the pod have taken than the sidecar and what keeps pods together. `None` where that cannot be told apart.
pub(super) fn taken_by_others(pod: &Cgroup, sidecar: &Cgroup) -> Option<Duration> {
    if !pod.processes().ok()?.is_empty() {
        return None;
    }
    let all = pod.cpu_time()?;
    let keeps = |child: &Cgroup| child.populated() && !child.all_processes().iter().any(is_company);
    let children = pod.children();
    let not_theirs = children
        .iter()
        .filter(|child| *child == sidecar || keeps(child))
        .filter_map(Cgroup::cpu_time);
    Some(all.saturating_sub(not_theirs.sum()))
}

/// Not of the sandbox: its processes live as long as the pod, and are no application.
fn is_company(pid: &u32) -> bool {
    const KEEPERS: [&str; 4] = ["pause", "catatonit", "podman-pause", "conmon"];
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| !KEEPERS.contains(&name.trim_end()))
}
