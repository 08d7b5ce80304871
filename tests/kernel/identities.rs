//! Who may, by identity: policies decide on what real mutual TLS has proved, for requests and for opaque bytes, and what
//! they refuse never reaches the application.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::world::{Running, Settings, Workload, World, wait, workload::LIMIT};

use crate::{mesh, peers};

const SHOP: &str = "ns/shop/sa/orders";
const WEB: &str = "ns/shop/sa/web";
const GUEST: &str = "ns/guests/sa/guest";
const HTTP: u16 = 8080;
const TCP: u16 = 7000;

/// Web may read the page, its namespace may speak TCP, the guest may nothing.
fn policies() -> Value {
    let web = json!([{ "source": { "principals": [format!("td/{WEB}")] } }]);
    let shop = json!([{ "source": { "namespaces": ["shop"] } }]);
    let guests = json!([{ "source": { "namespaces": ["guests"] } }]);
    let guest = json!([{ "source": { "principals": [format!("td/{GUEST}")] } }]);
    json!([
        { "name": "web-reads", "rules": [{
            "from": web, "to": [{ "operation": { "methods": ["GET"], "paths": ["/page"] } }],
        }] },
        { "name": "shop-speaks", "rules": [{ "from": shop, "to": [{ "operation": { "ports": [TCP] } }] }] },
        { "name": "no-guests", "action": "DENY", "rules": [
            { "from": guests, "to": [{ "operation": { "ports": [TCP] } }] },
            { "from": guest },
        ] },
    ])
}

/// The workloads of a test: who serves, and what its application is.
struct Stage<'w> {
    server: Workload<'w>,
    authority: String,
    nginx: Running,
    _banner: Running,
    _pages: tempfile::TempDir,
}

impl<'w> Stage<'w> {
    fn set(world: &'w World) -> Result<Self> {
        let mut server = world.workload("orders")?;
        let authority = mesh::authority(&server)?;
        let settings = mesh::identity(&authority, SHOP)
            .set("inbound.mtls", "strict")
            .protocol(TCP, "tcp")
            .set("authorization.inbound.default", "deny")
            .set("authorization.inbound.policies", policies());
        server.start_sidecar(&settings)?;
        let pages = tempfile::tempdir()?;
        fs::write(pages.path().join("page"), "a page")?;
        let nginx = peers::nginx(&server, server.v4(HTTP), pages.path(), "")?;
        // It would speak first.
        let at = server.v4(TCP).to_string();
        let banner = server.serving("banner", &["banner", "--listen", &at])?;
        Ok(Self {
            server,
            authority,
            nginx,
            _banner: banner,
            _pages: pages,
        })
    }

    /// Of a client's sidecar.
    fn settings(&self, id: &str) -> Settings {
        let service = mesh::service(&self.server, SHOP, &[HTTP, TCP]);
        mesh::identity(&self.authority, id).push("services", service)
    }

    fn client(&self, name: &str, id: &str) -> Result<Workload<'w>> {
        let world = self.server.world();
        world.workload(name)?.with_sidecar(&self.settings(id))
    }

    /// The status of a request.
    fn asks(&self, client: &Workload<'_>, method: &str, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.server.v4(HTTP));
        let out = ["--output", "/dev/null", "--write-out", "%{http_code}"];
        let asked = peers::curl(client, &[&out[..], &["--request", method, &url]].concat())?;
        Ok(asked.success()?.stdout)
    }

    /// What the TCP application says to a client.
    fn hears(&self, client: &Workload<'_>) -> Result<String> {
        let program = "import socket, sys\n\
                       try:\n    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20); s.settimeout(20)\n    \
                       print(s.recv(100).decode().strip())\n\
                       except OSError as e: print(type(e).__name__)";
        let (host, port) = (self.server.v4(TCP).ip().to_string(), TCP.to_string());
        let arguments = ["-c", program, &host, &port];
        let heard = client.start("hear", "/usr/bin/python3", &arguments)?;
        Ok(heard.finish(LIMIT)?.success()?.stdout.trim().to_owned())
    }

    /// Connections that the server's sidecar has made to its applications.
    fn dialled(&self) -> Result<f64> {
        Ok(self.server.metrics()?.sum("sidecar_dials_total", &[]))
    }

    /// The record in the server's access log of what `client` was refused.
    fn refusal(&self, client: &str, of: impl Fn(&Value) -> bool) -> Result<Value> {
        let what = format!("the refusal of {client}");
        wait::until(&what, Duration::from_secs(20), || {
            let log = self.server.sidecar()?.log()?;
            let mut lines = log
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            Ok(lines.find(|line: &Value| {
                line["client_identity"] == format!("spiffe://td/{client}")
                    && line["reason"] == "policy_denied"
                    && of(line)
            }))
        })
    }
}

#[test]
fn identities_and_namespaces_decide_over_real_mutual_tls() {
    World::play(|world| {
        let stage = Stage::set(world)?;
        let web = stage.client("web", WEB)?;
        let guest = stage.client("guest", GUEST)?;

        ensure!(stage.asks(&web, "GET", "/page")? == "200");
        ensure!(stage.hears(&web)? == "220 ready");
        let dialled = stage.dialled()?;
        ensure!(stage.asks(&web, "PUT", "/page")? == "403");
        ensure!(stage.asks(&web, "GET", "/other")? == "403");
        ensure!(stage.asks(&guest, "GET", "/page")? == "403");
        let heard = stage.hears(&guest)?;
        ensure!(heard == "ConnectionResetError", "{heard}");
        ensure!(stage.dialled()? == dialled, "an application was called");
        let served = stage.nginx.stdout()?;
        ensure!(served.lines().count() == 1, "{served}");

        for method in ["PUT", "GET"] {
            let line = stage.refusal(WEB, |line| line["method"] == method)?;
            ensure!(line["policy"] == "default", "{line}");
        }
        let request = stage.refusal(GUEST, |line| line["kind"] == "request")?;
        ensure!(
            request["policy"] == "no-guests" && request["rule"] == 1,
            "{request}"
        );
        let connection = stage.refusal(GUEST, |line| line["kind"] == "connection")?;
        ensure!(
            connection["policy"] == "no-guests" && connection["rule"] == 0,
            "{connection}"
        );
        ensure!(connection["upstream"].is_null() && request["upstream"].is_null());
        // The client's side knows whom it spoke to.
        let log = web.sidecar()?.log()?;
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let outbound = lines.find(|line| line["kind"] == "request" && line["status"] == 200);
        let outbound = outbound.context("no record of the request")?;
        ensure!(
            outbound["upstream_identity"] == format!("spiffe://td/{SHOP}"),
            "{outbound}"
        );
        Ok(())
    });
}

/// The connections that the sidecar keeps for its requests are those of the old one.
#[test]
fn a_workload_that_becomes_another_one_is_the_other_one_at_once() {
    World::play(|world| {
        let stage = Stage::set(world)?;
        let client = stage.client("client", WEB)?;
        let pid = client.sidecar()?.pid()?;
        ensure!(stage.asks(&client, "GET", "/page")? == "200");
        let become_another = |settings: &Settings, generation: f64| -> Result<()> {
            let text = settings.text(client.name());
            fs::write(client.sidecar()?.configuration(), text)?;
            wait::until_true("the new configuration", Duration::from_secs(20), || {
                Ok(client.metrics()?.sum("sidecar_config_generation", &[]) == generation)
            })
        };
        become_another(&stage.settings(GUEST), 2.0)?;
        ensure!(stage.asks(&client, "GET", "/page")? == "403");
        stage.refusal(GUEST, |line| line["policy"] == "no-guests")?;
        become_another(&stage.settings(WEB), 3.0)?;
        ensure!(stage.asks(&client, "GET", "/page")? == "200");
        // What cannot be had is refused, and changes nothing.
        let nowhere = stage.settings(WEB).set("identity.ca.directory", "/nowhere");
        fs::write(
            client.sidecar()?.configuration(),
            nowhere.text(client.name()),
        )?;
        wait::until_true("the refusal", Duration::from_secs(20), || {
            Ok(client.metrics()?.sum("sidecar_config_stale", &[]) == 1.0)
        })?;
        ensure!(client.sidecar()?.log()?.contains("/nowhere"));
        ensure!(stage.asks(&client, "GET", "/page")? == "200");
        ensure!(client.sidecar()?.pid()? == pid);
        client.sidecar()?.expect_no_panic()
    });
}
