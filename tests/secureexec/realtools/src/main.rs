//! Asks the library of the tools for IBM Z, `s390_pv`, what it makes of our files, and makes files for ours to read.
//!
//!     realtools tags IMAGE                                         PLD, ALD, TLD and tag of an image, in hex
//!     realtools request OUT KEY FLAGS HKD…                         an attestation request, and its protection key
//!     realtools measure IMAGE REQUEST KEY CUID USER ADDITIONAL     the measurement that an answer must have, in hex,
//!                                                                  and the parts of the additional data
//!     realtools verify ROOT HKD CERTIFICATE,… LIST,…               whether a host key document is one
//!
//! FLAGS are letters: i, a, s, f for the parts of additional data. Whatever the library refuses ends with code 3 and its words.

use std::error::Error;
use std::fs::{read, write, File};

use s390_pv::attest::{
    AdditionalData, AttestationFlags, AttestationItems, AttestationMeasAlg, AttestationMeasurement, AttestationRequest,
    AttestationVersion,
};
use s390_pv::misc::read_certs;
use s390_pv::request::openssl::pkey::PKey;
use s390_pv::request::{BootHdrTags, CertVerifier, HkdVerifier, ReqEncrCtx, Request, SymKey, SymKeyType};

type Said = Result<Vec<String>, Box<dyn Error>>;

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tags(image: &str) -> Said {
    let tags = BootHdrTags::from_se_image(&mut File::open(image)?)?;
    let all: &[u8] = tags.as_ref();
    Ok([0..64, 64..128, 128..192, 192..208].map(|part| hex(&all[part])).to_vec())
}

fn request(out: &str, key: &str, letters: &str, documents: &[String]) -> Said {
    let mut flags = AttestationFlags::default();
    for letter in letters.chars() {
        match letter {
            'i' => flags.set_image_phkh(),
            'a' => flags.set_attest_phkh(),
            's' => flags.set_secret_store_hash(),
            'f' => flags.set_firmware_state(),
            _ => return Err("no such flag".into()),
        }
    }
    let mut request = AttestationRequest::new(AttestationVersion::One, AttestationMeasAlg::HmacSha512, flags)?;
    for document in documents {
        request.add_hostkey(read_certs(read(document)?)?.first().ok_or("no certificate")?.public_key()?);
    }
    let context = ReqEncrCtx::random(SymKeyType::Aes256Gcm)?;
    write(out, request.encrypt(&context)?)?;
    write(key, context.prot_key().value())?;
    Ok(vec![flags.expected_additional_size().to_string()])
}

fn measure(image: &str, request: &str, key: &str, cuid: &str, user: &str, additional: &str) -> Said {
    let key = SymKey::try_from_data(SymKeyType::Aes256Gcm, read(key)?.into())?;
    let (clear, secret) = AttestationRequest::decrypt_bin(&read(request)?, &key)?;
    let (user, additional) = (read(user)?, read(additional)?);
    let cuid = read(cuid)?.try_into().map_err(|_| "the identifier has another size")?;
    let items = AttestationItems::new(
        &BootHdrTags::from_se_image(&mut File::open(image)?)?,
        &cuid,
        (!user.is_empty()).then_some(&user[..]),
        secret.nonce().as_ref().map(|nonce| nonce.value()),
        (!additional.is_empty()).then_some(&additional[..]),
    );
    let measured = AttestationMeasurement::calculate(items, clear.mai(), PKey::hmac(secret.measurement_key())?.as_ref())?;
    let parts = AdditionalData::from_slice(&additional, clear.flags())?;
    let told = [
        parts.image_public_host_key_hash(),
        parts.attestation_public_host_key_hash(),
        parts.secret_store_hash(),
        parts.firmware_state(),
        parts.unrecognized(),
    ];
    Ok([hex(measured.as_ref())].into_iter().chain(told.map(|part| hex(part.copied().unwrap_or_default()))).collect())
}

fn verify(root: &str, document: &str, certificates: &str, lists: &str) -> Said {
    let split = |names: &str| names.split(',').filter(|name| !name.is_empty()).map(String::from).collect::<Vec<_>>();
    let verifier = CertVerifier::new(&split(certificates), &split(lists), Some(root), true)?;
    verifier.verify(read_certs(read(document)?)?.first().ok_or("no certificate")?)?;
    Ok(vec![])
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = match given[..] {
        ["tags", image] => tags(image),
        ["request", out, key, flags, ..] => request(out, key, flags, &words[4..]),
        ["measure", image, request, key, cuid, user, additional] => measure(image, request, key, cuid, user, additional),
        ["verify", root, document, certificates, lists] => verify(root, document, certificates, lists),
        _ => Err("what is asked?".into()),
    };
    match said {
        Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(3);
        }
    }
}
