use proptest::prelude::*;

use super::*;
use crate::inject::{STATUS, patch::apply, yaml::any_value};

fn decide(pod: &Value, says: Namespace, defaults: &Defaults) -> Outcome {
    let pod = Pod {
        value: pod,
        says,
        namespace: Some("shop"),
        owner: None,
    };
    pod.decide(defaults)
}

fn injected(pod: &Value, defaults: &Defaults) -> Value {
    let mut injected = pod.clone();
    match decide(pod, Namespace::Enabled, defaults) {
        Outcome::Inject { patch, .. } => apply(&patch, &mut injected).unwrap(),
        other => panic!("{other:?}"),
    }
    injected
}

fn plain() -> Value {
    json!({
        "metadata": { "name": "orders", "labels": { "app": "orders" } },
        "spec": { "containers": [{ "name": "app", "image": "app", "ports": [{ "containerPort": 8080 }] }] },
    })
}

fn with(path: &str, value: Value) -> Value {
    let mut pod = plain();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let parent = pod.pointer_mut(parent).unwrap();
    parent[key] = value;
    pod
}

fn annotated(annotations: Value) -> Value {
    with("/metadata/annotations", annotations)
}

#[test]
fn a_pod_gets_a_sidecar() {
    let pod = injected(&plain(), &Defaults::default());
    let container = &pod["spec"]["initContainers"][0];
    assert_eq!(container["name"], "sidecar");
    assert_eq!(container["restartPolicy"], "Always");
    assert_eq!(container["args"], json!(["proxy"]));
    assert_eq!(container["startupProbe"]["httpGet"]["port"], 15021);
    let volumes = &pod["spec"]["volumes"];
    assert_eq!(volumes[0]["csi"]["driver"], "agent.sidecar.internal");
    assert_eq!(volumes.as_array().unwrap().len(), 1);
    let status = pod["metadata"]["annotations"][STATUS].as_str().unwrap();
    assert!(
        status.contains("\"volumes\":[\"sidecar-agent\"]"),
        "{status}"
    );
}

#[test]
fn the_kubelet_may_ask_where_the_pod_says_and_nowhere_else() {
    let pod = json!({
        "metadata": { "name": "orders" },
        "spec": {
            "initContainers": [{ "name": "first", "startupProbe": { "tcpSocket": { "port": 7000 } } }],
            "containers": [{
                "name": "app",
                "ports": [{ "name": "http", "containerPort": 8080 }, { "containerPort": 8081 }],
                "livenessProbe": { "httpGet": { "port": "http", "host": "" } },
                "readinessProbe": { "grpc": { "port": 9090 } },
                "lifecycle": { "preStop": { "httpGet": { "port": "7001" } } },
            }, {
                "name": "hostile",
                "livenessProbe": { "httpGet": { "port": 6379, "host": "10.0.0.1" } },
                "readinessProbe": { "httpGet": { "port": "http" } },
                "startupProbe": { "exec": { "command": ["true"] } },
            }],
        },
    });
    let injected = injected(&pod, &Defaults::default());
    let containers = injected["spec"]["initContainers"].as_array().unwrap();
    let sidecar = containers.iter().find(|c| c["name"] == "sidecar").unwrap();
    let environment = sidecar["env"].as_array().unwrap();
    let settings = environment.iter().find(|e| e["name"] == "SIDECAR_SETTINGS");
    let source = crate::config::Source {
        settings: settings.unwrap()["value"].as_str().map(str::to_owned),
        ..Default::default()
    };
    let snapshot = source.load().unwrap_or_else(|error| panic!("{error}"));
    let expected = [7000, 7001, 8080, 9090].into();
    assert_eq!(snapshot.inbound.probe_ports, Some(expected));
}

#[test]
fn an_older_cluster_gets_an_ordinary_container() {
    let defaults = Defaults {
        kind: Kind::Container,
        agent_volume: super::super::AgentVolume::HostPath,
        ..Defaults::default()
    };
    let pod = injected(&plain(), &defaults);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["name"], "sidecar");
    assert!(container.get("restartPolicy").is_none());
    assert_eq!(
        container["lifecycle"]["postStart"]["exec"]["command"][1],
        "ready"
    );
    assert_eq!(pod["spec"]["containers"][1]["name"], "app");
    assert_eq!(
        pod["spec"]["volumes"][0]["hostPath"]["path"],
        "/run/sidecar"
    );
    assert!(pod["spec"].get("initContainers").is_none());
    let warned = |policy: &str| {
        let pod = with("/spec/restartPolicy", json!(policy));
        match decide(&pod, Namespace::Enabled, &defaults) {
            Outcome::Inject { warnings, .. } => warnings.join(" "),
            other => panic!("{other:?}"),
        }
    };
    assert!(warned("OnFailure").contains("6 minutes"));
    assert_eq!(warned("Always") + &warned("Never"), "");
    let steered = annotated(json!({ "sidecar.internal/init-containers": "steered" }));
    assert!(matches!(
        decide(&steered, Namespace::Enabled, &defaults),
        Outcome::Refuse(_)
    ));
}

#[test]
fn annotations_reach_the_container() {
    let pod = injected(
        &annotated(json!({
            "sidecar.internal/config": "mesh",
            "sidecar.internal/identity": "csi",
            "sidecar.internal/log": "debug",
            "sidecar.internal/image": "example.org/sidecar:2",
            "sidecar.internal/workload": "shop-orders",
            "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
        })),
        &Defaults::default(),
    );
    let container = &pod["spec"]["initContainers"][0];
    assert_eq!(container["image"], "example.org/sidecar:2");
    assert_eq!(
        container["args"][1],
        "--config=/etc/sidecar/config/sidecar.yaml"
    );
    let environment = container["env"].as_array().unwrap();
    let value = |name: &str| {
        let found = environment.iter().find(|variable| variable["name"] == name);
        found
            .and_then(|found| found["value"].as_str())
            .unwrap_or_default()
    };
    assert_eq!(value("SIDECAR_LOG"), "debug");
    assert_eq!(value("SIDECAR_AGENT"), "/run/sidecar/agent.sock");
    assert!(value("SPIFFE_ENDPOINT_SOCKET").starts_with("unix:///"));
    let settings = value("SIDECAR_SETTINGS");
    for part in ["shop-orders", "namespace: shop", "3306", "workloadApi"] {
        assert!(settings.contains(part), "{part}: {settings}");
    }
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let names: Vec<_> = volumes.iter().map(|volume| &volume["name"]).collect();
    assert_eq!(
        names,
        ["sidecar-agent", "sidecar-config", "sidecar-identity"]
    );
    assert_eq!(
        volumes[1]["configMap"],
        json!({ "name": "mesh", "optional": false })
    );
}

#[test]
fn init_containers_come_behind_the_sidecar_or_bypass_it() {
    let init = json!([{ "name": "migrate" }, { "name": "other", "restartPolicy": "Always" }]);
    let names = |pod: &Value| -> Vec<String> {
        let all = pod["spec"]["initContainers"].as_array().unwrap().iter();
        all.map(|container| container["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let defaults = Defaults::default();
    let mut steered = injected(&with("/spec/initContainers", init.clone()), &defaults);
    assert_eq!(names(&steered), ["sidecar", "migrate", "other"]);
    // Another webhook comes after ours, and ours is asked again.
    let late = steered
        .pointer_mut("/spec/initContainers")
        .and_then(Value::as_array_mut);
    late.unwrap().insert(0, json!({ "name": "vault" }));
    assert_eq!(
        names(&injected(&steered, &defaults)),
        ["sidecar", "vault", "migrate", "other"]
    );

    let mut pod = annotated(json!({ "sidecar.internal/init-containers": "bypass" }));
    pod["spec"]["initContainers"] = init;
    let mut bypassed = injected(&pod, &defaults);
    assert_eq!(names(&bypassed), ["migrate", "other", "sidecar"]);
    let late = bypassed
        .pointer_mut("/spec/initContainers")
        .and_then(Value::as_array_mut);
    late.unwrap().push(json!({ "name": "vault" }));
    assert_eq!(
        names(&injected(&bypassed, &defaults)),
        ["migrate", "other", "vault", "sidecar"]
    );
}

#[test]
fn what_cannot_have_a_sidecar_is_refused_or_left() {
    let istio = json!({ "sidecar.istio.io/status": "{}" });
    for (pod, says) in [
        (with("/spec/hostNetwork", json!(true)), "hostNetwork"),
        (with("/spec/os", json!({ "name": "windows" })), "Linux"),
        (annotated(istio), "Istio's"),
        (
            with("/spec/initContainers", json!([{ "name": "istio-proxy" }])),
            "Istio's",
        ),
    ] {
        match decide(&pod, Namespace::Enabled, &Defaults::default()) {
            Outcome::Leave { why, warn: true } => assert!(why.contains(says), "{why}"),
            other => panic!("{other:?}"),
        }
        let mut asks = pod;
        asks["metadata"]["labels"] = json!({ "sidecar.internal/inject": "true" });
        match decide(&asks, Namespace::Silent, &Defaults::default()) {
            Outcome::Refuse(why) => assert!(why.contains(says), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    for says in [Namespace::Silent, Namespace::Disabled] {
        let left = decide(&plain(), says, &Defaults::default());
        assert!(
            matches!(left, Outcome::Leave { warn: false, .. }),
            "{left:?}"
        );
    }
}

#[test]
fn mistakes_are_refused_whoever_asks() {
    let port = |number: u16| json!([{ "name": "app", "ports": [{ "containerPort": number }] }]);
    for (pod, says) in [
        (with("/spec/containers", json!([])), "no containers"),
        (
            with("/spec/containers", port(15021)),
            "15021, which is the sidecar's for health",
        ),
        (with("/spec/initContainers", port(15001)), "15001"),
        (
            with("/spec/containers", json!([{ "name": "sidecar" }])),
            "called sidecar",
        ),
        (
            with(
                "/spec/volumes",
                json!([{ "name": "sidecar-agent", "emptyDir": {} }]),
            ),
            "sidecar-agent",
        ),
        (
            annotated(json!({ "sidecar.internal/cpu": "x" })),
            "sidecar.internal/cpu",
        ),
        (
            annotated(json!({ "sidecar.internal/inject": "maybe" })),
            "\"true\" or \"false\"",
        ),
    ] {
        match decide(&pod, Namespace::Enabled, &Defaults::default()) {
            Outcome::Refuse(why) => assert!(why.contains(says), "{why}"),
            other => panic!("{says}: {other:?}"),
        }
    }
    // UDP is another port, and others are not ours.
    let udp = json!([{ "name": "app", "ports": [{ "containerPort": 15021, "protocol": "UDP" }, { "containerPort": 15003 }] }]);
    injected(&with("/spec/containers", udp), &Defaults::default());
}

#[test]
fn the_workload_is_called_after_its_owner() {
    let owned = |kind: &str, name: &str| {
        let mut pod = json!({
            "metadata": {
                "generateName": format!("{name}-"), "labels": { "pod-template-hash": "5d9c7b" },
                "ownerReferences": [{ "kind": kind, "name": name, "controller": true }],
            },
            "spec": {},
        });
        let owner = |pod: &Value| {
            let pod = Pod {
                value: pod,
                says: Namespace::Silent,
                namespace: None,
                owner: None,
            };
            pod.workload(&Wishes::default())
        };
        let by_owner = owner(&pod);
        pod["metadata"]["ownerReferences"] = json!([]);
        (by_owner, owner(&pod))
    };
    assert_eq!(owned("ReplicaSet", "orders-5d9c7b").0, "orders");
    assert_eq!(owned("ReplicaSet", "orders-other").0, "orders-other");
    assert_eq!(owned("StatefulSet", "db").0, "db");
    assert_eq!(owned("Job", "report-28391234").0, "report");
    assert_eq!(owned("Job", "once").0, "once");
    assert_eq!(owned("Job", "once").1, "once");
}

/// A pod of which a container mounts a volume.
fn mounting(list: &str, volume: Value, mount: Value) -> Value {
    let mut pod = plain();
    let mut container = json!({ "name": "other", "volumeMounts": [mount] });
    container["volumeMounts"][0]["mountPath"] = json!("/x");
    pod["spec"]["volumes"] = json!([volume]);
    match pod["spec"][list].as_array_mut() {
        Some(containers) => containers.push(container),
        None => pod["spec"][list] = json!([container]),
    }
    pod
}

#[test]
fn no_other_container_reaches_the_agent() {
    let defaults = Defaults::default();
    let node = |path: &str| json!({ "name": "v", "hostPath": { "path": path } });
    let v = json!({ "name": "v" });
    let csi = json!({ "name": "v", "csi": { "driver": "agent.sidecar.internal" } });
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let ours = json!({ "name": "sidecar-agent" });
        for pod in [
            mounting(list, json!({ "name": "y", "emptyDir": {} }), ours),
            mounting(list, csi.clone(), v.clone()),
            mounting(list, node("/run/sidecar"), v.clone()),
            mounting(list, node("/var/run/sidecar/"), v.clone()),
            mounting(list, node("/run/sidecar/agent.sock"), v.clone()),
            mounting(
                list,
                node("/run"),
                json!({ "name": "v", "subPath": "./sidecar" }),
            ),
        ] {
            match decide(&pod, Namespace::Enabled, &defaults) {
                Outcome::Refuse(why) => assert!(why.contains("container other"), "{why}"),
                other => panic!("{pod}: {other:?}"),
            }
        }
        for path in ["/", "/run", "/var/run"] {
            let mut pod = mounting(list, node(path), v.clone());
            match decide(&pod, Namespace::Enabled, &defaults) {
                Outcome::Leave { why, warn: true } => {
                    assert!(why.contains("/run/sidecar"), "{why}")
                }
                other => panic!("{pod}: {other:?}"),
            }
            pod["metadata"]["labels"]["sidecar.internal/inject"] = json!("true");
            let asked = decide(&pod, Namespace::Enabled, &defaults);
            assert!(matches!(asked, Outcome::Refuse(_)), "{asked:?}");
        }
    }
    for pod in [
        mounting("containers", node("/run/sidecars"), v.clone()),
        mounting("containers", node("/var/log"), v.clone()),
        mounting(
            "containers",
            node("/"),
            json!({ "name": "v", "subPath": "etc" }),
        ),
        // Nobody mounts it.
        with("/spec/volumes", json!([csi])),
    ] {
        let decided = decide(&pod, Namespace::Enabled, &defaults);
        assert!(matches!(decided, Outcome::Inject { .. }), "{decided:?}");
    }
    // One that came after the sidecar.
    let mut pod = injected(&plain(), &defaults);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "sidecar-agent", "mountPath": "/x" }]);
    let again = decide(&pod, Namespace::Enabled, &defaults);
    assert!(matches!(again, Outcome::Refuse(_)), "{again:?}");
}

/// A pod with whatever fields, of which injection must lose none.
fn any_pod() -> impl Strategy<Value = Value> {
    let name = "[a-z]{1,8}";
    let container = (name, any_value(), prop::collection::vec(1u16..14_000, 0..3)).prop_map(
        |(name, other, ports)| {
            let ports: Vec<Value> = ports
                .iter()
                .map(|port| json!({ "containerPort": port }))
                .collect();
            json!({ "name": format!("x{name}"), "ports": ports, "other": other })
        },
    );
    let container = container.boxed();
    let containers = || prop::collection::vec(container.clone(), 1..4);
    let volumes = prop::collection::vec((name, any_value()), 0..3).prop_map(|volumes| {
        let volume = |(name, value): (String, Value)| json!({ "name": format!("x{name}"), "emptyDir": value });
        Value::from(volumes.into_iter().map(volume).collect::<Vec<_>>())
    });
    let extra = prop::collection::hash_map("x[a-z]{1,6}", any_value(), 0..4);
    (containers(), prop::option::of(containers()), prop::option::of(volumes), extra, any::<bool>(), any::<bool>()).prop_map(
        |(containers, init, volumes, extra, bypass, has_annotations)| {
            let mut pod = json!({ "metadata": { "name": "a", "x": extra.clone() }, "spec": { "containers": containers } });
            for (key, value) in extra {
                pod["spec"][key] = value;
            }
            if let Some(init) = init {
                pod["spec"]["initContainers"] = init.into();
            }
            if let Some(volumes) = volumes {
                pod["spec"]["volumes"] = volumes;
            }
            if has_annotations {
                pod["metadata"]["annotations"] = json!({ "a/b~c": "x" });
            }
            if bypass {
                pod["metadata"]["annotations"]["sidecar.internal/init-containers"] = json!("bypass");
            }
            pod
        },
    )
}

/// The pod without what was put in.
fn stripped(mut pod: Value, before: &Value) -> Value {
    let spec = pod["spec"].as_object_mut().unwrap();
    for key in ["initContainers", "containers", "volumes"] {
        if let Some(list) = spec.get_mut(key).and_then(Value::as_array_mut) {
            let ours = |each: &Value| {
                each["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("sidecar"))
            };
            list.retain(|each| !ours(each));
            if list.is_empty() && before["spec"].get(key).is_none() {
                spec.remove(key);
            }
        }
    }
    let metadata = pod["metadata"].as_object_mut().unwrap();
    let annotations = metadata["annotations"].as_object_mut().unwrap();
    annotations.remove(STATUS);
    if annotations.is_empty() && before["metadata"].get("annotations").is_none() {
        metadata.remove("annotations");
    }
    pod
}

proptest! {
    #[test]
    fn nothing_is_lost_and_a_second_time_changes_nothing(pod in any_pod(), native: bool, map in prop::option::of("[a-z]{1,5}")) {
        let defaults = Defaults {
            // A bypass is for init containers before a native one, and what an ordinary one does anyway.
            kind: if native { Kind::Native } else { Kind::Container },
            config_map: map,
            ..Defaults::default()
        };
        let once = injected(&pod, &defaults);
        prop_assert_eq!(&stripped(once.clone(), &pod), &pod);
        let again = decide(&once, Namespace::Enabled, &defaults);
        prop_assert_eq!(again, Outcome::Inject { patch: vec![], warnings: vec![] });
        // Another implementation of RFC 6902 comes to the same.
        let Outcome::Inject { patch, .. } = decide(&pod, Namespace::Enabled, &defaults) else { unreachable!() };
        let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(patch).unwrap()).unwrap();
        let mut theirs = pod;
        json_patch::patch(&mut theirs, &patch).unwrap();
        prop_assert_eq!(theirs, once);
    }
}
