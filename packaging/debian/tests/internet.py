#!/usr/bin/python3
"""Two domains: the HTTPS server of their policies, and their MX hosts.

good.test's MX host has the certificate that its policy asks for; bad.test's has one of
nobody. internet.py FOLDER: certificates are there, and each message is a file in it.
"""
import asyncio
import os
import ssl
import sys

from aiosmtpd.controller import Controller

folder = sys.argv[1]


def tls(name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/{name}.crt", f"{folder}/{name}.key")
    return context


class Keep:
    async def handle_DATA(self, server, session, envelope):
        for recipient in envelope.rcpt_tos:
            with open(os.path.join(folder, "to-" + recipient), "wb") as f:
                f.write(envelope.content)
        return "250 kept"


async def policy(reader, writer):
    request = await reader.readuntil(b"\r\n\r\n")
    host = request.lower().partition(b"\r\nhost: mta-sts.")[2].partition(b"\r\n")[0]
    body = b"version: STSv1\nmode: enforce\nmx: mx." + host + b"\nmax_age: 86400\n"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def main():
    for name, address in ("good", "127.0.0.2"), ("bad", "127.0.0.3"):
        Controller(Keep(), hostname=address, port=25, server_hostname=f"mx.{name}.test", tls_context=tls(name)).start()
    server = await asyncio.start_server(policy, "127.0.0.4", 443, ssl=tls("policy"))
    open(os.path.join(folder, "ready"), "w").close()
    await server.serve_forever()


asyncio.run(main())
