//! A certificate authority and a certificate of it, as files.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Paths of PEM files.
pub struct Authority {
    /// The authority's own certificate.
    pub ca: PathBuf,
    /// A certificate signed by it, good for servers and clients.
    pub cert: PathBuf,
    /// The key of `cert`.
    pub key: PathBuf,
}

impl Authority {
    /// A new one in `dir`, whose certificate is good for `names`; `label` tells it from others there.
    pub fn new(dir: &Path, label: &str, names: &[&str]) -> Authority {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Names of their own: OpenSSL takes a certificate whose issuer is called as itself for self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("authority {label}"));
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, label);
        let cert = params.signed_by(&key, &issuer).unwrap();
        let file = |name: &str, text: String| {
            let path = dir.join(format!("{label}-{name}.pem"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Authority {
            ca: file("ca", ca.pem()),
            cert: file("cert", cert.pem()),
            key: file("key", key.serialize_pem()),
        }
    }
}
