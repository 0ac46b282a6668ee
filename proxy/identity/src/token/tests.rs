use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_760_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn issuer_with(ttl: u64) -> SandboxTokenIssuer {
    SandboxTokenIssuer::new(SigningKey::generate().unwrap(), "openshell", Duration::from_secs(ttl))
}

/// Signs any header and claims with the issuer's key.
fn signed(
    issuer: &SandboxTokenIssuer,
    header: &serde_json::Value,
    claims: &serde_json::Value,
) -> String {
    let text = format!("{}.{}", encode_json(header), encode_json(claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.key.sign(text.as_bytes()));
    format!("{text}.{signature}")
}

fn good_header(issuer: &SandboxTokenIssuer) -> serde_json::Value {
    serde_json::json!({ "alg": "EdDSA", "typ": "JWT", "kid": issuer.key.kid() })
}

fn good_claims() -> serde_json::Value {
    serde_json::json!({
        "sub": "spiffe://openshell/sandbox/5c0e", "iss": "openshell-gateway:openshell",
        "aud": "openshell-gateway:openshell", "iat": NOW, "exp": 0, "sandbox_id": "5c0e",
    })
}

#[test]
fn a_minted_token_verifies_and_has_the_claims_of_the_contract() {
    let issuer = issuer_with(0);
    let (token, expires) = issuer.mint("5c0e", at(NOW));
    assert_eq!(expires, None);
    let claims = issuer.verifier().verify(token.expose(), at(NOW + 1_000_000_000)).unwrap();
    assert_eq!(claims, Claims { sandbox_id: "5c0e".into(), issued_at: at(NOW), expires_at: None });
    let parts: Vec<&str> = token.expose().split('.').collect();
    assert_eq!(decode_json::<serde_json::Value>(parts[0]), Some(good_header(&issuer)));
    assert_eq!(decode_json::<serde_json::Value>(parts[1]), Some(good_claims()));
}

#[test]
fn a_token_expires_after_the_leeway() {
    let issuer = issuer_with(100);
    let (token, expires) = issuer.mint("5c0e", at(NOW));
    assert_eq!(expires, Some(at(NOW + 100)));
    let verify = |now| issuer.verifier().verify(token.expose(), at(now));
    assert!(verify(NOW + 160).is_ok());
    assert_eq!(verify(NOW + 161), Err(TokenError::Expired { since: Duration::from_secs(61) }));
    // A verifier whose clock is behind accepts it.
    assert!(verify(NOW - 1000).is_ok());
}

#[test]
fn a_ttl_below_a_second_is_not_forever() {
    let issuer =
        SandboxTokenIssuer::new(SigningKey::generate().unwrap(), "g", Duration::from_millis(1));
    assert_eq!(issuer.mint("5c0e", at(NOW)).1, Some(at(NOW + 1)));
}

#[test]
fn tokens_of_others_are_foreign() {
    let issuer = issuer_with(0);
    let verifier = issuer.verifier();
    let (other, _) = issuer_with(0).mint("5c0e", at(NOW));
    let rs256 = serde_json::json!({ "alg": "RS256", "kid": issuer.key.kid() });
    let nameless = serde_json::json!({ "alg": "EdDSA" });
    for token in [
        other.expose().as_str(),
        "",
        "opaque",
        "a.b",
        "a.b.c",
        "..",
        &signed(&issuer, &rs256, &good_claims()),
        &signed(&issuer, &nameless, &good_claims()),
        &"x".repeat(MAX_TOKEN + 1),
    ] {
        assert_eq!(verifier.verify(token, at(NOW)), Err(TokenError::Foreign), "{token:.40}");
    }
}

#[test]
fn signed_by_us_is_not_enough() {
    let issuer = issuer_with(0);
    let verifier = issuer.verifier();
    assert!(
        verifier.verify(&signed(&issuer, &good_header(&issuer), &good_claims()), at(NOW)).is_ok()
    );
    let with = |base: serde_json::Value, key: &str, value: serde_json::Value| {
        let mut changed = base;
        changed[key] = value;
        changed
    };
    for (claim, value) in [
        ("iss", "openshell-gateway:other".into()),
        ("aud", "openshell-gateway:other".into()),
        ("sub", "spiffe://openshell/sandbox/other".into()),
        ("sub", "5c0e".into()),
        ("sandbox_id", "".into()),
        ("exp", "0".into()),
        ("exp", serde_json::json!(-1)),
        ("aud", serde_json::json!(["openshell-gateway:openshell"])),
    ] {
        let token = signed(&issuer, &good_header(&issuer), &with(good_claims(), claim, value));
        let refused = verifier.verify(&token, at(NOW));
        assert!(matches!(refused, Err(TokenError::BadClaim { .. })), "{claim}: {refused:?}");
    }
    for (name, value) in [("typ", "openshell-ext+jwt".into()), ("crit", serde_json::json!(["x"]))] {
        let token = signed(&issuer, &with(good_header(&issuer), name, value), &good_claims());
        assert_eq!(verifier.verify(&token, at(NOW)), Err(TokenError::BadClaim { claim: name }));
    }
    let mut missing = good_claims();
    missing.as_object_mut().unwrap().remove("exp");
    let token = signed(&issuer, &good_header(&issuer), &missing);
    assert!(
        verifier.verify(&token, at(NOW)).is_err(),
        "a token without exp is not one that never expires"
    );
}

#[test]
fn key_sets_show_the_public_key_only() {
    let issuer = issuer_with(0);
    let jwks = issuer.jwks();
    assert_eq!(jwks["keys"][0]["kid"], issuer.key.kid());
    assert_eq!(
        (&jwks["keys"][0]["kty"], &jwks["keys"][0]["crv"]),
        (&"OKP".into(), &"Ed25519".into())
    );
    assert!(jwks["keys"][0].get("d").is_none());
    let metadata = issuer.openid_metadata("https://127.0.0.1:17670/");
    assert_eq!(metadata["issuer"], "openshell-gateway:openshell");
    assert_eq!(metadata["jwks_uri"], "https://127.0.0.1:17670/.well-known/jwks.json");
}

proptest! {
    #[test]
    fn a_changed_token_never_verifies(position: prop::sample::Index, replacement in "[A-Za-z0-9_.=-]|\u{e9}| ") {
        let issuer = issuer_with(0);
        let (token, _) = issuer.mint("5c0e", at(NOW));
        let token = token.expose();
        let index = position.index(token.len());
        let changed = format!("{}{replacement}{}", &token[..index], &token[index + 1..]);
        if changed != *token {
            prop_assert!(issuer.verifier().verify(&changed, at(NOW)).is_err());
        }
        // Cut short or with something added, too.
        prop_assert!(issuer.verifier().verify(&token[..index], at(NOW)).is_err());
        let longer = format!("{token}{replacement}");
        prop_assert!(issuer.verifier().verify(&longer, at(NOW)).is_err());
    }

    #[test]
    fn no_text_panics(text in ".{0,80}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}") {
        let issuer = issuer_with(0);
        prop_assert!(issuer.verifier().verify(&text, at(NOW)).is_err());
    }
}
