//! The taint that keeps pods from a node until its agent can attach for them: a pod that came first would wait for its sidecar.
//!
//! Whoever makes nodes puts it there (the kubelet's `--register-with-taints`); the agent takes it away. The agent's service
//! account needs `get` and `patch` of `nodes`.

use std::time::Duration;

use serde_json::{Value, json};
use tracing::{info, warn};

use super::api::{Api, ApiError, PatchKind};

pub const TAINT: &str = "sidecar.internal/agent-not-ready";

/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Takes the taint from `node`, trying until that is done.
pub async fn remove(api: &Api, node: &str) {
    let mut pause = FIRST_PAUSE;
    loop {
        match try_remove(api, node).await {
            Ok(true) => return info!(node, "took the taint {TAINT} away: pods may come"),
            Ok(false) => return info!(node, "the node has no taint {TAINT}"),
            Err(ApiError::Conflict(_)) => {}
            Err(error) => warn!(node, %error, "the taint {TAINT} stays for now"),
        }
        // Not all nodes of a cluster at once.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether there was one.
async fn try_remove(api: &Api, node: &str) -> Result<bool, ApiError> {
    let path = format!("/api/v1/nodes/{node}");
    let object = api.get(&path).await?;
    let Some(taints) = without(&object) else {
        return Ok(false);
    };
    let version = &object["metadata"]["resourceVersion"];
    // With the version, so that a taint that somebody else adds meanwhile is not lost.
    let change =
        json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
    api.patch(&path, PatchKind::Merge, &change)
        .await
        .map(|_| true)
}

/// The other taints of the node; `None`: it does not have ours.
fn without(node: &Value) -> Option<Vec<Value>> {
    let taints = node["spec"]["taints"].as_array()?;
    let ours = |taint: &&Value| taint["key"] == TAINT;
    taints.iter().any(|taint| ours(&taint)).then(|| {
        let others = taints.iter().filter(|taint| !ours(taint));
        others.cloned().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_taints_stay() {
        let other = json!({ "key": "a", "effect": "NoExecute" });
        let node =
            json!({ "spec": { "taints": [{ "key": TAINT, "effect": "NoSchedule" }, other] } });
        assert_eq!(without(&node), Some(vec![other.clone()]));
        assert_eq!(without(&json!({ "spec": { "taints": [other] } })), None);
        assert_eq!(without(&json!({ "spec": {} })), None);
    }
}
