//! AdmissionReview (admission.k8s.io/v1): what an API server asks, and the answer.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Defaults,
    asked::Namespace,
    pod::{Outcome, Pod},
};

const API_VERSION: &str = "admission.k8s.io/v1";

/// Characters of one warning; API servers cut them off.
const WARNING_MAX: usize = 256;

/// It is no review.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no AdmissionReview of {API_VERSION}: {0}")]
pub struct NoReview(String);

/// What became of a pod, for the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Injected,
    /// It had its sidecar.
    Unchanged,
    Left,
    Refused,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Injected, Self::Unchanged, Self::Left, Self::Refused];

    pub fn name(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Left => "left",
            Self::Refused => "refused",
        }
    }
}

/// The answer to a review of a pod in a namespace that says `says`.
///
/// # Errors
///
/// It is none: to be answered with 400.
pub fn answer(
    body: &[u8],
    says: Namespace,
    defaults: &Defaults,
) -> Result<(Value, Verdict), NoReview> {
    let no = |why: &str| NoReview(why.to_owned());
    let review: Value =
        serde_json::from_slice(body).map_err(|error| NoReview(error.to_string()))?;
    if review["apiVersion"] != API_VERSION || review["kind"] != "AdmissionReview" {
        return Err(no("apiVersion and kind say something else"));
    }
    let request = &review["request"];
    let uid = request["uid"].as_str();
    let uid = uid
        .filter(|uid| !uid.is_empty())
        .ok_or_else(|| no("request.uid is missing"))?;
    let outcome = decide(request, says, defaults)?;
    let (mut response, verdict) = match outcome {
        Outcome::Inject { patch, warnings } if patch.is_empty() => (
            json!({ "allowed": true, "warnings": told(&warnings) }),
            Verdict::Unchanged,
        ),
        Outcome::Inject { patch, warnings } => {
            let patch = STANDARD.encode(json!(patch).to_string());
            let response = json!({
                "allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": told(&warnings),
            });
            (response, Verdict::Injected)
        }
        Outcome::Leave { why, warn } => {
            let warning = format!("this pod has no sidecar: {why}");
            let warnings = if warn { vec![warning] } else { Vec::new() };
            (
                json!({ "allowed": true, "warnings": told(&warnings) }),
                Verdict::Left,
            )
        }
        Outcome::Refuse(why) => {
            let message = format!("this pod cannot have the sidecar that it is to have: {why}");
            let status = json!({ "code": 422, "reason": "Invalid", "message": message });
            (
                json!({ "allowed": false, "status": status }),
                Verdict::Refused,
            )
        }
    };
    response["uid"] = json!(uid);
    response["auditAnnotations"] = json!({ "verdict": verdict.name() });
    if let Some(response) = response.as_object_mut() {
        // An empty list would be as good.
        response.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
    }
    let answer =
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
    Ok((answer, verdict))
}

fn decide(request: &Value, says: Namespace, defaults: &Defaults) -> Result<Outcome, NoReview> {
    let kind = &request["kind"];
    let is_pod = kind["group"] == "" && kind["version"] == "v1" && kind["kind"] == "Pod";
    let part = request["subResource"].as_str().unwrap_or_default();
    let created = request["operation"] == "CREATE" && part.is_empty();
    let debugged = request["operation"] == "UPDATE" && part == "ephemeralcontainers";
    if !is_pod || !(created || debugged) {
        // Whoever configured the webhook asks for too much, which is no reason to break anything.
        return Ok(Outcome::Leave {
            why: "the injector is for the creation of pods: see `rules` of its MutatingWebhookConfiguration".to_owned(),
            warn: true,
        });
    }
    let value = &request["object"];
    if !value.is_object() {
        return Err(NoReview("request.object is missing".to_owned()));
    }
    let pod = Pod {
        value,
        says,
        namespace: request["namespace"]
            .as_str()
            .filter(|name| super::is_name(name)),
        owner: None,
    };
    Ok(match debugged {
        true => pod.decide_debugging(defaults),
        false => pod.decide(defaults),
    })
}

fn told(warnings: &[String]) -> Vec<String> {
    let cut = |warning: &String| warning.chars().take(WARNING_MAX).collect();
    warnings.iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::{CONTAINER, STATUS};

    fn review(request: Value) -> Vec<u8> {
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "request": request })
            .to_string()
            .into()
    }

    fn of_pod(object: Value) -> Value {
        json!({
            "uid": "1-2", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "operation": "CREATE",
            "namespace": "shop", "object": object,
        })
    }

    fn answered(request: Value) -> (Value, Verdict) {
        let (answer, verdict) =
            answer(&review(request), Namespace::Enabled, &Defaults::default()).unwrap();
        assert_eq!(answer["response"]["uid"], "1-2");
        (answer["response"].clone(), verdict)
    }

    #[test]
    fn answers() {
        let pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }] } });
        let (response, verdict) = answered(of_pod(pod.clone()));
        assert_eq!(
            (&response["allowed"], verdict),
            (&json!(true), Verdict::Injected)
        );
        let patch = STANDARD
            .decode(response["patch"].as_str().unwrap())
            .unwrap();
        assert!(
            String::from_utf8(patch)
                .unwrap()
                .starts_with("[{\"op\":\"add\"")
        );
        let mut host = pod.clone();
        host["spec"]["hostNetwork"] = json!(true);
        let (response, verdict) = answered(of_pod(host));
        assert_eq!(
            (&response["allowed"], verdict),
            (&json!(true), Verdict::Left)
        );
        assert!(
            response["warnings"][0]
                .as_str()
                .unwrap()
                .contains("hostNetwork")
        );
        let (response, verdict) = answered(of_pod(json!({ "spec": {} })));
        assert_eq!(
            (&response["allowed"], verdict),
            (&json!(false), Verdict::Refused)
        );
        assert!(
            response["status"]["message"]
                .as_str()
                .unwrap()
                .contains("no containers")
        );
        // What is not for us is let through.
        let mut other = of_pod(pod);
        other["kind"]["kind"] = json!("Service");
        let (response, verdict) = answered(other);
        assert_eq!(
            (&response["allowed"], verdict),
            (&json!(true), Verdict::Left)
        );
        assert!(response["warnings"][0].is_string());
    }

    #[test]
    fn containers_for_debugging_do_not_reach_the_agent() {
        let status = json!({ STATUS: "{}" });
        let sidecar = json!({ "name": CONTAINER });
        let debugging = |mounts: Value| {
            let mut request = of_pod(json!({
                "metadata": { "annotations": status },
                "spec": {
                    "initContainers": [sidecar], "containers": [{ "name": "a" }],
                    "ephemeralContainers": [{ "name": "debug", "volumeMounts": mounts }],
                },
            }));
            request["operation"] = json!("UPDATE");
            request["subResource"] = json!("ephemeralcontainers");
            request
        };
        let (response, verdict) = answered(debugging(json!([])));
        assert_eq!(
            (&response["allowed"], verdict),
            (&json!(true), Verdict::Unchanged)
        );
        let mounts = json!([{ "name": "sidecar-agent", "mountPath": "/a" }]);
        let (response, verdict) = answered(debugging(mounts.clone()));
        assert_eq!(
            (&response["allowed"], verdict),
            (&json!(false), Verdict::Refused)
        );
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains("container debug"), "{message}");
        // One without a sidecar of ours.
        let mut other = debugging(mounts);
        other["object"]["metadata"] = json!({});
        assert_eq!(answered(other).1, Verdict::Left);
    }

    #[test]
    fn what_is_no_review_is_said() {
        for (body, says) in [
            (b"{".to_vec(), "line 1"),
            (b"[]".to_vec(), "apiVersion"),
            (
                b"{\"apiVersion\":\"admission.k8s.io/v1beta1\",\"kind\":\"AdmissionReview\"}"
                    .to_vec(),
                "apiVersion",
            ),
            (review(json!({})), "uid"),
            (review(of_pod(Value::Null)), "object"),
        ] {
            let error = answer(&body, Namespace::Silent, &Defaults::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
