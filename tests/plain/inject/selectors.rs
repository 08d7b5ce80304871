//! Whom API servers ask the webhook about: the selectors of the manifests, against what the injector makes of the same labels.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use sidecar_tests::manifests;
use sidecar_userspace::inject::asked::{Asked, Namespace};

/// An API server asks about just those pods that are to have a sidecar, at the path that says for whom: what is in the selectors
/// and what the injector makes of the same labels cannot differ.
#[test]
fn api_servers_ask_about_those_who_want_a_sidecar() -> Result<()> {
    let objects = manifests::render("base")?;
    let configuration = manifests::find(
        &objects,
        "MutatingWebhookConfiguration",
        "inject.sidecar.internal",
    )?;
    let webhooks = configuration["webhooks"].as_array().context("webhooks")?;
    let said = [
        None,
        Some("enabled"),
        Some("true"),
        Some("disabled"),
        Some("false"),
    ];
    let (mut wanted, mut all) = (0, 0);
    for (ours, istio) in pairs(&said) {
        let namespace = labels(&[
            ("kubernetes.io/metadata.name", Some("shop")),
            ("sidecar.internal/inject", ours),
            ("istio-injection", istio),
        ]);
        let says = Namespace::of(&namespace, true)?;
        for (ours, istio) in pairs(&said) {
            let pod = labels(&[
                ("sidecar.internal/inject", ours),
                ("sidecar.istio.io/inject", istio),
            ]);
            let meant = Asked::of(&pod, &Map::new(), says, true)?;
            let asked: Vec<_> = webhooks
                .iter()
                .filter(|webhook| {
                    selects(&webhook["namespaceSelector"], &namespace)
                        && selects(&webhook["objectSelector"], &pod)
                })
                .collect();
            ensure!(asked.len() <= 1, "asked twice: {namespace:?} {pod:?}");
            let found = match asked.first() {
                None => Asked::No,
                Some(webhook) => {
                    let says = match webhook["clientConfig"]["service"]["path"].as_str() {
                        Some("/inject/namespace") => Namespace::Enabled,
                        Some("/inject/pod") => Namespace::Silent,
                        other => bail!("{other:?} is no path of the injector's"),
                    };
                    Asked::of(&pod, &Map::new(), says, true)?
                }
            };
            let injects = |asked| matches!(asked, Asked::ByPod | Asked::ByNamespace);
            ensure!(
                found == meant || !injects(found) && !injects(meant),
                "{found:?} instead of {meant:?}: {namespace:?} {pod:?}"
            );
            wanted += usize::from(injects(meant));
            all += 1;
        }
    }
    ensure!(wanted > 100 && all == 625, "{wanted} of {all} were wanted");
    Ok(())
}

type Said = Option<&'static str>;

fn pairs(said: &[Said]) -> impl Iterator<Item = (Said, Said)> {
    said.iter()
        .flat_map(|one| said.iter().map(|other| (*one, *other)))
}

fn labels(said: &[(&str, Said)]) -> Map<String, Value> {
    let said = said.iter().filter_map(|(key, value)| {
        let value = value.as_ref()?;
        Some(((*key).to_owned(), Value::from(*value)))
    });
    said.collect()
}

/// As `matchExpressions` of a label selector mean it.
fn selects(selector: &Value, labels: &Map<String, Value>) -> bool {
    let rules = selector["matchExpressions"].as_array();
    rules.into_iter().flatten().all(|rule| {
        let label = rule["key"].as_str().and_then(|key| labels.get(key));
        let listed = || {
            let values = rule["values"].as_array().into_iter().flatten();
            values.into_iter().any(|value| Some(value) == label)
        };
        match rule["operator"].as_str() {
            Some("In") => listed(),
            Some("NotIn") => !listed(),
            Some("Exists") => label.is_some(),
            Some("DoesNotExist") => label.is_none(),
            other => panic!("no operator: {other:?}"),
        }
    })
}
