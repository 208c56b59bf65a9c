# Completion of sts-tlsmap(8) for fish.
function __sts_tlsmap_domains
	timeout 2 sts-tlsmap -cache 2>/dev/null | awk -v from=(commandline -ct) 'NR > 1 && $1 ~ /[.]/ && index($1, from) == 1 { print $1; if (++n == 200) exit }'
end
function __sts_tlsmap_maps
	sed -n 's/^\[map\.\([a-z0-9-]*\)\].*/\1/p' /etc/sts-tlsmap/sts-tlsmap.toml 2>/dev/null
end
complete -c sts-tlsmap -f
complete -c sts-tlsmap -o cache -a '(__sts_tlsmap_domains)' -d 'Print the cache'
complete -c sts-tlsmap -o query -x -a '(__sts_tlsmap_domains)' -d 'Ask the running daemon as the relay would'
complete -c sts-tlsmap -o explain -x -a '(__sts_tlsmap_domains)' -d 'Every step to the answer for a domain'
complete -c sts-tlsmap -o probe -r -F -d 'Connect to the MX hosts and say whether mail would go out'
complete -c sts-tlsmap -o waiting -d 'Print which mail waits because of TLS'
complete -c sts-tlsmap -o refresh -x -a 'all (__sts_tlsmap_domains)' -d 'Check and fetch policies now'
complete -c sts-tlsmap -o forget -x -a 'all (__sts_tlsmap_domains)' -d 'Drop policies from the cache'
complete -c sts-tlsmap -o learn -r -F -d 'Fill the cache from a file'
complete -c sts-tlsmap -o exempt -x -a '(__sts_tlsmap_domains)' -d 'Answer NOTFOUND for a time'
complete -c sts-tlsmap -o for -x -a '4h 1d 0' -d 'How long -exempt lasts'
complete -c sts-tlsmap -o check -d 'Check the configuration'
complete -c sts-tlsmap -o tls -d 'Which destinations had TLS failures'
complete -c sts-tlsmap -o report -d 'The TLS reports and how far they are'
complete -c sts-tlsmap -o send -d 'Send the TLS reports of a day now'
complete -c sts-tlsmap -o day -x -a yesterday -d 'The day that -send sends'
complete -c sts-tlsmap -o suppress -x -d 'An address to which -report sends nothing'
complete -c sts-tlsmap -o read-report -r -F -d 'What TLS reports say that others sent'
complete -c sts-tlsmap -o fleet -d 'Print the relays that share policies, or do it at all relays'
complete -c sts-tlsmap -o fleet-key -d 'Print a new key for the relays of a fleet'
complete -c sts-tlsmap -o recipe -x -a 'exim postfix sendmail' -d 'Print what the MTA needs in its configuration'
complete -c sts-tlsmap -o version -d 'Print the version'
complete -c sts-tlsmap -o help -d 'Print the flags'
complete -c sts-tlsmap -o config -r -F -d 'Another configuration'
complete -c sts-tlsmap -o map -x -a 'postfix postfix-tlsrpt postfix-dane postfix-dane-tlsrpt exim sts (__sts_tlsmap_maps)' -d 'The map that -query asks in, or the relay of -probe'
complete -c sts-tlsmap -o json -d 'One JSON object a line'
complete -c sts-tlsmap -o mode -x -a 'enforce testing none' -d 'With -cache: policies of a mode'
complete -c sts-tlsmap -o expiring -x -a '2d 12h' -d 'With -cache: policies that expire within a time'
complete -c sts-tlsmap -o healthy -d 'With -query: exit 0 whatever the reply is'
complete -c sts-tlsmap -o failing -d 'With -cache: policies whose last fetch failed'
complete -c sts-tlsmap -o yes -d 'With -forget all: do not ask'
