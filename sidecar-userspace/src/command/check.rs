//! `check`: what works on this machine and what does not, each with what to do about it.

use std::{fs, process::ExitCode, time::SystemTime};

use anyhow::Result;
use serde::Serialize;

use super::{
    floor,
    standalone::{Cgroups, Trial, trial},
};
use crate::{
    cli::Check,
    config,
    identity::source,
    kernel::{btf::Btf, features, load::OBJECT},
    model::{Level, Snapshot, Steering},
    sys::cgroup::Cgroup,
    tls::mesh::Mesh,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works with less.
    Warning,
    /// It does not work.
    Failure,
}

#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

pub fn run(args: Check) -> Result<ExitCode> {
    let mut findings = Findings::default();
    let mut snapshot = Snapshot::builtin();
    if let Some(path) = &args.config.config {
        match config::load(path) {
            Ok(loaded) => {
                findings.ok("configuration", path.display());
                snapshot = loaded;
            }
            // With nothing else to tell, the errors speak for themselves.
            Err(errors) if !args.json => return Err(errors.into()),
            Err(errors) => findings.fail("configuration", errors, "correct the file"),
        }
    }
    identity(&mut findings, &snapshot);
    kernel(&mut findings);
    btf(&mut findings);
    cgroup(&mut findings);
    if privileges(&mut findings) {
        self_test(&mut findings, &args, &snapshot);
    }
    let worst = findings
        .0
        .iter()
        .map(|f| f.verdict)
        .max()
        .unwrap_or(Verdict::Ok);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings.0)?);
    } else {
        print(&findings.0, worst);
    }
    let misconfigured = findings
        .0
        .iter()
        .any(|f| f.subject == "configuration" && f.verdict == Verdict::Failure);
    Ok(match (worst, misconfigured) {
        (_, true) => ExitCode::from(super::USAGE),
        (Verdict::Failure, _) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Whether the workload's identity can be had, and for how long.
fn identity(findings: &mut Findings, snapshot: &Snapshot) {
    let Some(identity) = &snapshot.identity else {
        return;
    };
    let remedy = "correct the files that the section identity names";
    let material = match source::read(identity, &snapshot.workload) {
        Ok(material) => material,
        Err(error) => return findings.fail("identity", error, remedy),
    };
    let (id, facts) = (&material.svid.id, &material.svid.facts);
    let now = SystemTime::now();
    let hours = facts.left(now).as_secs() / 3600;
    if let Err(error) = Mesh::new(material.clone(), identity.min_version) {
        findings.fail("identity", error, remedy);
    } else if !facts.is_valid_at(now) {
        findings.fail(
            "identity",
            format!("{id}: not valid now"),
            "renew the certificate",
        );
    } else {
        findings.ok("identity", format!("{id}, valid for {hours} h"));
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        subject: &'static str,
        verdict: Verdict,
        found: impl ToString,
        remedy: Option<&str>,
    ) {
        self.0.push(Finding {
            subject,
            verdict,
            found: found.to_string(),
            remedy: remedy.map(str::to_owned),
        });
    }

    fn ok(&mut self, subject: &'static str, found: impl ToString) {
        self.add(subject, Verdict::Ok, found, None);
    }

    fn warn(&mut self, subject: &'static str, found: impl ToString, remedy: &str) {
        self.add(subject, Verdict::Warning, found, Some(remedy));
    }

    fn fail(&mut self, subject: &'static str, found: impl ToString, remedy: &str) {
        self.add(subject, Verdict::Failure, found, Some(remedy));
    }
}

fn kernel(findings: &mut Findings) {
    match floor::release() {
        (release, true) => findings.ok("kernel", release),
        (release, false) => findings.fail("kernel", release, floor::NEEDED),
    }
}

fn btf(findings: &mut Findings) {
    match features::constants() {
        Ok(_) => findings.ok("BTF", "structures of the running kernel are known"),
        Err(error) => {
            findings.warn(
                "BTF",
                error,
                "connections are steered but not redirected; use a kernel with BTF",
            );
        }
    }
    if let Ok(btf) = Btf::of_kernel()
        && btf.offset("tcp_sock", "is_mptcp").is_err()
    {
        findings.ok("MPTCP", "not built into this kernel");
    }
}

fn cgroup(findings: &mut Findings) {
    match Cgroup::own() {
        Ok(own) => findings.ok("cgroup v2", own.path().display()),
        Err(error) => findings.fail(
            "cgroup v2",
            error,
            "mount it, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

/// `CAP_*` numbers of linux/capability.h.
const CAPABILITIES: [(u32, &str); 4] = [
    (39, "CAP_BPF"),
    (38, "CAP_PERFMON"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
];

/// Whether the rest can be tried.
fn privileges(findings: &mut Findings) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        findings.ok("privileges", "enough to load and attach");
        return true;
    }
    let remedy = "run the check as root; `sidecar proxy` alone needs none";
    findings.warn(
        "privileges",
        format!("without {}", missing.join(", ")),
        remedy,
    );
    false
}

fn self_test(findings: &mut Findings, args: &Check, snapshot: &Snapshot) {
    if OBJECT.is_empty() {
        findings.fail(
            "kernel half",
            "this binary was built without it",
            "build with `cargo xtask build`",
        );
        return;
    }
    let name = format!("check-{}", std::process::id());
    let cgroups = match Cgroups::create(&name, None) {
        Ok(cgroups) => cgroups,
        Err(error) => {
            return findings.fail(
                "kernel half",
                format!("{error:#}"),
                "the sidecar makes cgroups below its own",
            );
        }
    };
    let steering = Steering {
        name,
        ..Steering::from(snapshot)
    };
    let tried = trial(&args.pins.bpffs, &steering, &cgroups);
    cgroups.remove();
    match tried {
        Err(error) => findings.fail(
            "kernel half",
            format!("{error:#}"),
            "see the message; --log debug says more",
        ),
        Ok(Trial {
            parts,
            reach,
            egress,
        }) => {
            findings.ok("kernel half", "loads and attaches");
            match egress {
                Ok(None) => findings.ok("outbound.deny", "holds for all IP traffic"),
                Ok(Some(why)) => {
                    let found = format!(
                        "holds for all IP traffic of applications without CAP_NET_RAW: {why}"
                    );
                    match snapshot.outbound.egress.deny.is_empty() {
                        true => findings.ok("outbound.deny", found),
                        false => findings.warn(
                            "outbound.deny",
                            found,
                            "rules are refused for others: start the application without it",
                        ),
                    }
                }
                Err(error) => findings.fail("outbound.deny", error, "rules would be refused"),
            }
            for part in parts {
                match part.failure {
                    None => findings.ok("self-test", part.name.name()),
                    // Only a level below the one that holds rests on it.
                    Some(failure) if reach.limit.is_none() => {
                        findings.ok(
                            "self-test",
                            format!("{}: {failure}, which sockets avoid", part.name.name()),
                        );
                    }
                    Some(failure) => findings.warn(
                        "self-test",
                        format!("{}: {failure}", part.name.name()),
                        remedy(reach.level),
                    ),
                }
            }
            match &reach.limit {
                None => findings.ok(
                    "redirect",
                    format!("{reach}: proven on this kernel just now"),
                ),
                Some(_) => findings.warn("redirect", &reach, remedy(reach.level)),
            }
        }
    }
}

/// What a level means, where it is not the highest.
fn remedy(level: Level) -> &'static str {
    match level {
        Level::Off => "connections are steered, their bytes take TCP; a newer kernel may do better",
        Level::BetweenProxies => {
            "connections are steered; messages pass TCP between two proxies of this node only; a newer kernel may do better"
        }
        Level::TowardsProxies => {
            "connections are steered; messages to applications take TCP, others pass it; a newer kernel may do better"
        }
        Level::TowardsApplications | Level::Joined => {
            "connections are steered; messages pass TCP, but not the proxies; a newer kernel may do better"
        }
    }
}

fn print(findings: &[Finding], worst: Verdict) {
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Failure => "FAIL",
        };
        println!("{mark}  {:<14} {}", finding.subject, finding.found);
        if let Some(remedy) = &finding.remedy {
            println!("      {:<14} -> {remedy}", "");
        }
    }
    println!(
        "{}",
        match worst {
            Verdict::Ok => "\neverything works here",
            Verdict::Warning => "\nit works here with less than everything",
            Verdict::Failure => "\nit does not work here yet",
        }
    );
}
