//! The archive: an OCI image layout in a tar (`podman load`, `skopeo`, `ctr image import`), with the one file beside it that
//! `docker load` looks for.

use super::{
    contents::USER,
    layer::{self, Layer},
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{fs::File, io::BufWriter, path::Path};

pub struct Image<'a> {
    pub tag: &'a str,
    /// The commit that it was built from.
    pub revision: Option<String>,
    /// The lowest first.
    pub layers: &'a [Layer],
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image<'_> {
    /// Writes the archive and gives the digest of the image's manifest.
    ///
    /// # Errors
    /// If the machine's architecture has no name in OCI, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<String> {
        let config = self.config()?.to_string().into_bytes();
        let manifest = self.manifest(&config).to_string().into_bytes();
        let index = self.index(&manifest);
        let docker = json!([{
            "Config": place(&layer::digest(&config)),
            "RepoTags": [self.tag],
            "Layers": self.layers.iter().map(|layer| place(&layer::digest(&layer.blob))).collect::<Vec<_>>(),
        }]);

        let mut files = vec![
            (
                "oci-layout".to_owned(),
                json!({"imageLayoutVersion": "1.0.0"})
                    .to_string()
                    .into_bytes(),
            ),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
        ];
        let layers = self.layers.iter().map(|layer| &layer.blob);
        for blob in layers.chain([&config, &manifest]) {
            files.push((place(&layer::digest(blob)), blob.clone()));
        }
        let failed = || format!("writing {}", path.display());
        let file = File::create(path).with_context(failed)?;
        let mut builder = tar::Builder::new(BufWriter::new(file));
        for directory in ["blobs", "blobs/sha256"] {
            layer::append(&mut builder, Path::new(directory), 0o755, None).with_context(failed)?;
        }
        for (name, content) in files {
            layer::append(&mut builder, Path::new(&name), 0o644, Some(&content))
                .with_context(failed)?;
        }
        let file = builder.into_inner().with_context(failed)?;
        file.into_inner().with_context(failed)?;
        Ok(layer::digest(&manifest))
    }

    fn config(&self) -> Result<Value> {
        Ok(json!({
            "architecture": architecture(std::env::consts::ARCH)?,
            "os": "linux",
            "config": {
                // By number: `runAsNonRoot` cannot judge a name.
                "User": format!("{USER}:{USER}"),
                "Entrypoint": ["/sidecar"],
                "WorkingDir": "/",
                "Labels": self.labels(),
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
            },
            "history": self.layers.iter().map(|_| json!({"created_by": "cargo xtask image"})).collect::<Vec<_>>(),
        }))
    }

    fn labels(&self) -> Value {
        let mut labels = json!({
            "org.opencontainers.image.title": "sidecar",
            "org.opencontainers.image.description": "An eBPF-accelerated sidecar: proxy, node agent and injector in one binary",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        });
        if let Some(revision) = &self.revision {
            labels["org.opencontainers.image.revision"] = json!(revision);
        }
        labels
    }

    fn manifest(&self, config: &[u8]) -> Value {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| descriptor(LAYER, &layer.blob))
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": layers,
        })
    }

    fn index(&self, manifest: &[u8]) -> Value {
        let mut described = descriptor(MANIFEST, manifest);
        described["annotations"] = json!({
            // Which of the two is read depends on the engine: the whole name (containerd), the name within the layout (OCI).
            "io.containerd.image.name": self.tag,
            "org.opencontainers.image.ref.name": self.tag,
        });
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]})
    }
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": layer::digest(blob), "size": blob.len()})
}

/// Where the layout has the blob of that digest.
fn place(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// Rust's name of an architecture as OCI (Go) calls it.
fn architecture(rust: &str) -> Result<&'static str> {
    Ok(match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("images are built for x86_64 and aarch64; this machine is {other}"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::image::contents::{Content, Entry};
    use std::{collections::BTreeMap, io::Read as _};

    fn layer() -> Layer {
        layer::pack(&[Entry {
            path: "sidecar".into(),
            mode: 0o755,
            content: Content::File(b"\x7fELF".to_vec()),
        }])
        .unwrap()
    }

    fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, bytes);
        }
        files
    }

    #[test]
    fn every_reference_leads_to_a_blob_of_its_digest_and_twice_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("1"), directory.path().join("2"));
        let image = Image {
            tag: "localhost/sidecar:1",
            revision: Some("c0ffee".to_owned()),
            layers: &[layer()],
        };
        let digest = image.write(&one).unwrap();
        assert_eq!(digest, image.write(&other).unwrap());
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&other).unwrap());

        let files = files(&one);
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&place(digest)];
            assert_eq!(layer::digest(bytes), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        let index = parse(&files["index.json"]);
        assert_eq!(index["manifests"][0]["digest"], digest);
        let manifest = parse(&blob(&index["manifests"][0]));
        let config = parse(&blob(&manifest["config"]));
        blob(&manifest["layers"][0]);
        assert_eq!(config["config"]["User"], "1337:1337");
        assert_eq!(config["rootfs"]["diff_ids"][0], layer().diff_id);
        let docker = parse(&files["manifest.json"]);
        for named in [&docker[0]["Config"], &docker[0]["Layers"][0]] {
            assert!(files.contains_key(named.as_str().unwrap()), "{named}");
        }
    }

    #[test]
    fn architectures_have_the_names_of_oci() {
        assert_eq!(architecture("aarch64").unwrap(), "arm64");
        assert!(architecture("sparc64").is_err());
    }
}
