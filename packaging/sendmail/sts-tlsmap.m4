divert(-1)
# For sendmail.mc of sendmail 8.18.2 and later, before the MAILER lines:
# include(/usr/share/sts-tlsmap/sendmail/sts-tlsmap.m4), in quotes of m4.
# /usr/share/doc/sts-tlsmap/docs/sendmail.md explains the lines.
divert(0)dnl
FEATURE(`sts', `socket -d30 -T<TMPF> inet:8461@127.0.0.1')dnl
define(`confDONT_EXPAND_CNAMES', `True')dnl
define(`confCACERT', `/etc/ssl/certs/ca-certificates.crt')dnl
define(`confCACERT_PATH', `/etc/ssl/certs')dnl
