//! Who asks for a sidecar: the pod, or its namespace for it.
//!
//! A pod says so by a label or annotation `sidecar.internal/inject` or Istio's `sidecar.istio.io/inject`, `"true"` or
//! `"false"`; a namespace by a label `sidecar.internal/inject` or Istio's `istio-injection`, `enabled` or `disabled`. Of
//! several at one place ours counts before Istio's, and a label before an annotation. Between pod and namespace it is as with
//! Istio: whoever says no prevails, else whoever says yes; where nobody says anything nothing is injected.

use serde_json::{Map, Value};

use super::{Mistake, STATUS};

/// Of pods and namespaces.
pub const INJECT: &str = "sidecar.internal/inject";
const ISTIO_POD: &str = "sidecar.istio.io/inject";
const ISTIO_NAMESPACE: &str = "istio-injection";

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It wants one by all means: where it cannot have one it is refused.
    ByPod,
    /// It is one of many: where it cannot have one it is left alone.
    ByNamespace,
    /// By nobody.
    No,
    /// Somebody said no.
    Forbidden,
}

/// What a namespace says for its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Enabled,
    Disabled,
    Silent,
}

/// Labels or annotations.
type Words = Map<String, Value>;

impl Asked {
    /// # Errors
    ///
    /// The pod says neither yes nor no.
    pub fn of(
        labels: &Words,
        annotations: &Words,
        namespace: Namespace,
        istio_names: bool,
    ) -> Result<Self, Mistake> {
        let mut places = vec![(INJECT, labels), (INJECT, annotations)];
        if istio_names {
            places.extend([(ISTIO_POD, labels), (ISTIO_POD, annotations)]);
        }
        let mut said = places
            .into_iter()
            .filter_map(|(key, words)| Some((key, words.get(key)?)));
        let pod = said.next().map(|(key, value)| yes_or_no(key, value));
        Ok(match (pod.transpose()?, namespace) {
            (Some(false), _) | (_, Namespace::Disabled) => Self::Forbidden,
            (Some(true), _) => Self::ByPod,
            (None, Namespace::Enabled) => Self::ByNamespace,
            (None, Namespace::Silent) => Self::No,
        })
    }
}

impl Namespace {
    /// # Errors
    ///
    /// A label says neither yes nor no.
    pub fn of(labels: &Words, istio_names: bool) -> Result<Self, Mistake> {
        let istio = istio_names.then_some(ISTIO_NAMESPACE);
        let mut keys = std::iter::once(INJECT).chain(istio);
        let said = keys.find_map(|key| Some((key, labels.get(key)?)));
        Ok(match said {
            None => Self::Silent,
            Some((key, value)) => match yes_or_no(key, value)? {
                true => Self::Enabled,
                false => Self::Disabled,
            },
        })
    }
}

fn yes_or_no(key: &str, value: &Value) -> Result<bool, Mistake> {
    match value.as_str() {
        Some("true" | "enabled") => Ok(true),
        Some("false" | "disabled") => Ok(false),
        Some(other) => Err(Mistake::expected(key, "\"true\" or \"false\"", other)),
        None => Err(Mistake::expected(
            key,
            "a text, \"true\" or \"false\"",
            &value.to_string(),
        )),
    }
}

/// Whether an injector of ours has been at the pod.
pub fn is_marked(annotations: &Words) -> bool {
    annotations.contains_key(STATUS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(value: &Value) -> Words {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn who_prevails() {
        use Asked::{ByNamespace, ByPod, Forbidden, No};
        use Namespace::{Disabled, Enabled, Silent};
        let none = json!({});
        let ours = |value: &str| json!({ "sidecar.internal/inject": value });
        let istio = |value: &str| json!({ "sidecar.istio.io/inject": value });
        // Labels, annotations, namespace, verdict.
        let table = [
            (none.clone(), none.clone(), Silent, No),
            (none.clone(), none.clone(), Enabled, ByNamespace),
            (none.clone(), none.clone(), Disabled, Forbidden),
            (ours("true"), none.clone(), Silent, ByPod),
            (ours("true"), none.clone(), Enabled, ByPod),
            (ours("true"), none.clone(), Disabled, Forbidden),
            (ours("false"), none.clone(), Enabled, Forbidden),
            (none.clone(), ours("true"), Silent, ByPod),
            (none.clone(), ours("false"), Enabled, Forbidden),
            (none.clone(), istio("true"), Silent, ByPod),
            (istio("false"), none.clone(), Enabled, Forbidden),
            (istio("enabled"), none.clone(), Silent, ByPod),
            // A label before an annotation, ours before Istio's.
            (ours("true"), ours("false"), Silent, ByPod),
            (istio("false"), istio("true"), Enabled, Forbidden),
            (istio("false"), ours("true"), Enabled, ByPod),
            (ours("false"), istio("true"), Enabled, Forbidden),
        ];
        for (labels, annotations, namespace, verdict) in table {
            let found = Asked::of(&words(&labels), &words(&annotations), namespace, true);
            assert_eq!(found, Ok(verdict), "{labels} {annotations} {namespace:?}");
        }
        let found = Asked::of(&words(&istio("true")), &Words::new(), Silent, false);
        assert_eq!(found, Ok(No));
        for wrong in [json!("yes"), json!(""), json!(true)] {
            let labels = words(&json!({ "sidecar.internal/inject": wrong }));
            assert!(Asked::of(&labels, &Words::new(), Enabled, true).is_err());
        }
    }

    #[test]
    fn namespaces() {
        let of = |labels: Value| Namespace::of(&words(&labels), true);
        assert_eq!(of(json!({})), Ok(Namespace::Silent));
        assert_eq!(
            of(json!({ "istio-injection": "enabled" })),
            Ok(Namespace::Enabled)
        );
        let both = json!({ "istio-injection": "enabled", "sidecar.internal/inject": "disabled" });
        assert_eq!(of(both), Ok(Namespace::Disabled));
        assert!(of(json!({ "istio-injection": "on" })).is_err());
    }
}
