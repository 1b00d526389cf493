//! Certificates of a test's own, made with the `openssl` program.

#![allow(dead_code, reason = "each test binary uses its own part of this, so an expectation would not hold in all")]

use std::path::Path;
use std::process::Command;

/// Makes an authority: `NAME.pem`, and its key `NAME.key`.
pub fn authority(folder: &Path, name: &str) {
    let subject = format!("/CN={name}");
    openssl(
        folder,
        &[
            &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", &subject],
            &["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")][..],
        ]
        .concat(),
    );
}

/// Makes a certificate for a host, signed by an authority: `NAME.pem` and `NAME.key`.
pub fn signed(folder: &Path, name: &str, authority: &str, host: &str) {
    let (key, request, subject) = (format!("{name}.key"), format!("{name}.csr"), format!("/CN={host}"));
    let (from, by, extension) = (format!("{authority}.pem"), format!("{authority}.key"), format!("{name}.ext"));
    std::fs::write(folder.join(&extension), format!("subjectAltName=DNS:{host}\n")).expect("a file");
    let asked = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request];
    openssl(folder, &asked);
    let out = format!("{name}.pem");
    let by = ["-CA", &from, "-CAkey", &by, "-CAcreateserial", "-extfile", &extension, "-out", &out];
    openssl(folder, &[&["x509", "-req", "-days", "30", "-in", &request][..], &by].concat());
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
