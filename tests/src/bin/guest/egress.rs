//! Step egress: where everything is denied but DNS, that goes out and nothing else does, in both families.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use sidecar_tests::world::{Settings, Workload, World, programs};

use crate::LIMIT;

#[derive(Debug, Deserialize)]
struct Account {
    sent: bool,
    denied: bool,
}

pub fn all_but_dns(world: &World) -> Result<Value> {
    let dns = world.workload("dns")?;
    let everything = json!({"name": "everything", "cidrs": ["0.0.0.0/0", "::/0"]});
    let exception = json!({
        "name": "dns", "cidrs": [dns.v4(0).ip(), dns.v6(0).ip()], "ports": [53], "protocols": ["UDP", "TCP"],
    });
    let settings = Settings::default()
        .push("outbound.deny", everything)
        .push("outbound.allow", exception);
    let client = world.workload("denied")?.with_sidecar(&settings)?;
    for connect in [false, true] {
        for (to, passes) in [
            (dns.v4(53), true),
            (dns.v6(53), true),
            (dns.v4(54), false),
            (dns.v6(54), false),
        ] {
            let account = send(&client, to, connect)?;
            ensure!(
                account.sent == passes && account.denied != passes,
                "{to}, connected: {connect}: {account:?}"
            );
        }
    }
    let denied = client.metrics()?.kernel_events("denied");
    ensure!(denied == 4, "{denied} are counted as denied");
    Ok(json!({"denied": denied}))
}

/// Without CAP_NET_RAW: before Linux 6.6 the rules are not for those who have it.
fn send(client: &Workload<'_>, to: SocketAddr, connect: bool) -> Result<Account> {
    let setpriv = programs::packaged("setpriv", "util-linux")?;
    let traffic = programs::traffic()?.display().to_string();
    let to = to.to_string();
    let bounded = ["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];
    let program = [&traffic, "datagram", "--to", &to];
    let connect: &[&str] = if connect { &["--connect"] } else { &[] };
    let words = [&bounded[..], &program, connect].concat();
    let running = client.start("datagram", setpriv, &words)?;
    running.finish(LIMIT)?.success()?.account()
}
