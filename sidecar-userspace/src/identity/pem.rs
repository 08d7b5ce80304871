//! PEM files: certificates, and private keys that nobody else may read.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

/// Bytes of one file at most: bundles of public roots have some 200 KiB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("others may read the private key {path} (mode {mode:04o}): chmod 600 it")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} has no {what} in PEM form{why}")]
    Content {
        path: PathBuf,
        what: &'static str,
        /// Begins with a colon, or is empty.
        why: String,
    },
}

/// Who may read the file of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Else it is refused.
    Owner,
    /// Something else than its mode keeps it: a volume that one container has.
    Any,
}

/// All certificates of the file, at least one, in its order.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let bytes = read(path, Readers::Any)?;
    let content = |why: String| PemError::Content {
        path: path.to_owned(),
        what: "certificate",
        why,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| content(format!(": {error}")))?;
    if all.is_empty() {
        return Err(content(String::new()));
    }
    Ok(all)
}

/// The private key of a file that nobody but `readers` may read.
pub fn private_key(
    path: &Path,
    readers: Readers,
) -> Result<Zeroizing<PrivateKeyDer<'static>>, PemError> {
    let bytes = read(path, readers)?;
    // The error's words do not quote the file.
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| PemError::Content {
        path: path.to_owned(),
        what: "private key",
        why: format!(": {error}"),
    })?;
    Ok(Zeroizing::new(key))
}

/// The text of a private key's file, for those who want it as it is.
pub fn private_text(path: &Path) -> Result<Zeroizing<String>, PemError> {
    let bytes = read(path, Readers::Owner)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| PemError::Content {
        path: path.to_owned(),
        what: "private key",
        why: String::new(),
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read(path: &Path, readers: Readers) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let failed = |source| PemError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if readers == Readers::Owner && mode & 0o077 != 0 {
        return Err(PemError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    // Room for all of it: a buffer that grows would leave copies of a key behind.
    let size = metadata.len().min(MAX_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// Writes `text` for everybody to read, replacing what was there in one step.
pub fn write_public(path: &Path, text: &str) -> Result<(), PemError> {
    write(path, text.as_bytes(), 0o644)
}

/// Writes `text` for the owner alone, replacing what was there in one step.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PemError> {
    write(path, text.as_bytes(), 0o600)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PemError> {
    let failed = |source| PemError::Write {
        path: path.to_owned(),
        source,
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let aside = path.with_file_name(name);
    let written = (|| {
        // Left over from a process of our number that was killed.
        let _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&aside)?;
        // Whatever the umask took away.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&aside);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_for_those_who_allow_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tls.key");
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        write_public(&path, &key).unwrap();
        let refused = private_key(&path, Readers::Owner);
        assert!(matches!(
            refused,
            Err(PemError::Exposed { mode: 0o644, .. })
        ));
        assert!(private_key(&path, Readers::Any).is_ok());
        write_secret(&path, &key).unwrap();
        assert!(private_key(&path, Readers::Owner).is_ok());
    }
}
