# Completion of sts-tlsmap(8) for bash.

# The domains in the cache that begin with $1, 200 at most. The rest is the configuration.
_sts_tlsmap_domains() {
	timeout 2 sts-tlsmap -cache "${@:2}" 2>/dev/null |
		awk -v from="$1" 'NR > 1 && $1 ~ /[.]/ && index($1, from) == 1 { print $1; if (++n == 200) exit }'
}

_sts_tlsmap() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} i
	local file=/etc/sts-tlsmap/sts-tlsmap.toml config=()
	for ((i = 1; i < COMP_CWORD - 1; i++)); do
		if [[ ${COMP_WORDS[i]} == -config ]]; then
			file=${COMP_WORDS[i + 1]} config=(-config "${COMP_WORDS[i + 1]}")
		fi
	done
	case $previous in
	-config | --config | -learn | --learn | -probe | --probe | -read-report | --read-report)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
		;;
	-map | --map)
		mapfile -t COMPREPLY < <(compgen -W 'postfix postfix-tlsrpt postfix-dane postfix-dane-tlsrpt exim sts'" $(sed -n 's/^\[map\.\([a-z0-9-]*\)\].*/\1/p' "$file" 2>/dev/null)" -- "$current")
		return
		;;
	-for | --for | -expiring | --expiring)
		mapfile -t COMPREPLY < <(compgen -W '4h 1d 30d 0' -- "$current")
		return
		;;
	-day | --day)
		mapfile -t COMPREPLY < <(compgen -W 'yesterday' -- "$current")
		return
		;;
	-recipe | --recipe)
		mapfile -t COMPREPLY < <(compgen -W 'exim postfix sendmail' -- "$current")
		return
		;;
	-mode | --mode)
		mapfile -t COMPREPLY < <(compgen -W 'enforce testing none' -- "$current")
		return
		;;
	-refresh | --refresh | -forget | --forget)
		mapfile -t COMPREPLY < <(compgen -W 'all' -- "$current")
		;;&
	-refresh | --refresh | -forget | --forget | -cache | --cache | -query | --query | -explain | --explain | -exempt | --exempt)
		mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(_sts_tlsmap_domains "$current" "${config[@]}")
		if [[ $current != -* ]]; then return; fi
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W '-cache -check -config -day -exempt -expiring -explain -failing -fleet -fleet-key -for -forget -healthy -help -json -learn -map -mode -probe -query -read-report -recipe -refresh -report -send -suppress -tls -version -waiting -yes' -- "$current")
}
complete -F _sts_tlsmap sts-tlsmap
