//! A layer: a tar of files, compressed, with no trace of when and by whom it was packed.

use super::contents::{Content, Entry};
use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
};

pub struct Layer {
    /// The compressed tar.
    pub blob: Vec<u8>,
    /// Of the tar before it was compressed.
    pub diff_id: String,
    pub unpacked_bytes: u64,
}

/// Packs `entries`, in the order of their paths, with the directories that they need.
///
/// # Errors
/// If a path does not fit into a tar.
pub fn pack(entries: &[Entry]) -> Result<Layer> {
    let tar = tar(entries)?;
    // No name and no time in the header.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(&tar).context("compressing a layer")?;
    Ok(Layer {
        blob: gzip.finish().context("compressing a layer")?,
        diff_id: digest(&tar),
        unpacked_bytes: tar.len() as u64,
    })
}

/// `sha256:` and the digits.
pub fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{digits}")
}

fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut all: BTreeMap<PathBuf, (u32, Option<&[u8]>)> = BTreeMap::new();
    for entry in entries {
        for parent in entry.path.ancestors().skip(1) {
            if parent != Path::new("") {
                all.entry(parent.to_owned()).or_insert((0o755, None));
            }
        }
        let content = match &entry.content {
            Content::Directory => None,
            Content::File(bytes) => Some(bytes.as_slice()),
        };
        all.insert(entry.path.clone(), (entry.mode, content));
    }
    let mut builder = tar::Builder::new(Vec::new());
    for (path, (mode, content)) in all {
        append(&mut builder, &path, mode, content)
            .with_context(|| format!("packing {}", path.display()))?;
    }
    builder.into_inner().context("packing a layer")
}

/// `content` of a file, none of a directory.
pub fn append(
    builder: &mut tar::Builder<impl std::io::Write>,
    path: &Path,
    mode: u32,
    content: Option<&[u8]>,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(match content {
        Some(_) => tar::EntryType::Regular,
        None => tar::EntryType::Directory,
    });
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let content = content.unwrap_or_default();
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, path, content)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn entries() -> Vec<Entry> {
        ["b/file", "a/b/c/file"]
            .map(|path| Entry {
                path: path.into(),
                mode: 0o640,
                content: Content::File(path.as_bytes().to_vec()),
            })
            .into()
    }

    #[test]
    fn the_same_files_give_the_same_layer_in_whatever_order() {
        let mut reversed = entries();
        reversed.reverse();
        let (one, other) = (pack(&entries()).unwrap(), pack(&reversed).unwrap());
        assert_eq!(one.blob, other.blob);
        assert_eq!(one.diff_id, other.diff_id);
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_all_is_roots() {
        let layer = pack(&entries()).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer.blob.as_slice()));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.header().uid().unwrap(), 0);
            assert_eq!(entry.header().mtime().unwrap(), 0);
            names.push(entry.path().unwrap().into_owned());
        }
        assert_eq!(
            names,
            ["a", "a/b", "a/b/c", "a/b/c/file", "b", "b/file"].map(PathBuf::from)
        );
    }

    #[test]
    fn digests_are_spelled_as_the_specification_does() {
        assert_eq!(
            digest(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
