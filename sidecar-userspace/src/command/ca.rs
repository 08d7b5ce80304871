//! `ca init` and `ca issue`: the embedded certification authority, for one machine and for demonstrations.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result};

use crate::{
    cli::{Ca as Arguments, CaVerb, Issue},
    identity::{
        ca::{self, Ca},
        pem,
    },
};

pub fn run(args: Arguments) -> Result<ExitCode> {
    match args.verb {
        CaVerb::Init(init) => {
            Ca::init(&init.directory, &init.trust_domain, init.lifetime.0)?;
            println!(
                "{}: the root of {}, valid for {} days; keep {} to yourself",
                init.directory.join(ca::CERTIFICATE).display(),
                init.trust_domain,
                init.lifetime.0.as_secs() / 86_400,
                init.directory.join(ca::KEY).display(),
            );
        }
        CaVerb::Issue(args) => issue(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Key before certificate: whoever watches the files reads them when the certificate, written last, is there.
fn issue(args: &Issue) -> Result<()> {
    let ca = Ca::load(&args.directory)?;
    let issued = ca.issue(&args.id, args.lifetime.0)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    let at = |name: &str| args.out.join(name);
    std::fs::copy(args.directory.join(ca::CERTIFICATE), at("ca.crt"))
        .with_context(|| format!("cannot write {}", at("ca.crt").display()))?;
    pem::write_secret(&at("tls.key"), &issued.key_pem())?;
    pem::write_public(&at("tls.crt"), &issued.certificate.pem())?;
    println!("{}", said(&args.out, &args.id.to_string(), args.lifetime.0));
    Ok(())
}

fn said(out: &Path, id: &str, lifetime: Duration) -> String {
    let out = out.display();
    format!("{out}: tls.crt, tls.key and ca.crt for {id}, valid for {lifetime:?} at most")
}
