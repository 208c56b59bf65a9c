# Prints what a receiver of TLS reports understands of the mail on standard input: its
# fields, the report, and what is wrong with both. The argument is the schema's file.
import dkim, email, email.policy, gzip, json, jsonschema, sys

raw = sys.stdin.buffer.read()
mail = email.message_from_bytes(raw, policy=email.policy.default)
text, attached = mail.iter_parts()
report = json.loads(gzip.decompress(attached.get_content()))
with open(sys.argv[1]) as f:
    schema = json.load(f)
jsonschema.Draft202012Validator.check_schema(schema)
signature = dkim.DKIM(raw)
print(json.dumps({
    "defects": [str(d) for part in (mail, text, attached) for d in part.defects],
    "schema": [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(report)],
    "signed": signature.verify(),  # asks the resolver in resolv.conf
    "signer": signature.domain.decode(),
    "type": mail.get_content_type() + " " + mail["Content-Type"].params["report-type"],
    "part": attached.get_content_type(),
    "file": attached.get_filename(),
    "headers": {name: str(mail[name]) for name in
                ("From", "To", "Subject", "TLS-Report-Domain", "TLS-Report-Submitter", "TLS-Required", "Auto-Submitted", "Return-Path")},
    "report": report,
}))
