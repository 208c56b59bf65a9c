# Completion of sts-tlsmap(8) for bash.
_sts_tlsmap() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
	case $previous in
	-config | --config | -learn | --learn | -probe | --probe)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
		;;
	-map | --map)
		mapfile -t COMPREPLY < <(compgen -W 'postfix postfix-tlsrpt postfix-dane postfix-dane-tlsrpt exim' -- "$current")
		return
		;;
	-for | --for)
		mapfile -t COMPREPLY < <(compgen -W '4h 1d 0' -- "$current")
		return
		;;
	-day | --day)
		mapfile -t COMPREPLY < <(compgen -W 'yesterday' -- "$current")
		return
		;;
	-recipe | --recipe)
		mapfile -t COMPREPLY < <(compgen -W 'exim postfix' -- "$current")
		return
		;;
	-refresh | --refresh | -forget | --forget)
		mapfile -t COMPREPLY < <(compgen -W 'all' -- "$current")
		return
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W '-cache -check -config -day -exempt -explain -for -forget -help -json -learn -map -probe -query -recipe -refresh -report -send -suppress -tls -version -waiting' -- "$current")
}
complete -F _sts_tlsmap sts-tlsmap
