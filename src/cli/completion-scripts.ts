/** What a shell loads so that it completes our command lines. All they do is ask `porthole __complete`: see `complete.ts`. */

export const shells = ['bash', 'zsh', 'fish'] as const;
export type ShellName = (typeof shells)[number];

/** In a template, a shell's `${` is written `\${`. */
const script = (text: string): string => text.replaceAll('\\${', '${');

export const completionScript = (shell: ShellName): string => scripts[shell];

/**
 * Bash splits words at ":" and "=" as well (COMP_WORDBREAKS): they are put together again, and what the shell has of the
 * word already is cut from the candidates.
 */
const bash = script(String.raw`# bash completion for porthole; load it with: source <(porthole completion bash)
_porthole() {
    local line=\${COMP_LINE:0:COMP_POINT} word i
    local -a words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=\${COMP_WORDS[i]}
        if [[ $line == [[:space:]]* || $i == 0 ]]; then
            line=\${line#"\${line%%[![:space:]]*}"}
            words+=("")
        fi
        [[ $line == "$word"* ]] || word=$line
        line=\${line#"$word"}
        words[\${#words[@]}-1]+=$word
    done
    local cur=\${words[\${#words[@]}-1]} directive rest candidate
    COMPREPLY=()
    {
        IFS= read -r directive || return
        case $directive in
            files) compopt -o default; return ;;
            directories) compopt -o dirnames; return ;;
            partial) compopt -o nospace ;;
        esac
        local skip=\${cur%"\${cur##*[:=]}"}
        while IFS=$'\t' read -r candidate rest; do
            candidate=\${candidate#"$skip"}
            printf -v candidate %q "$candidate"
            COMPREPLY+=("$candidate")
        done
    } < <("\${words[0]}" __complete "\${words[@]:1}" 2>/dev/null)
}
complete -F _porthole porthole
`);

const zsh = script(String.raw`#compdef porthole
# zsh completion for porthole; load it with: source <(porthole completion zsh)
_porthole() {
    local -a lines values
    local line
    lines=("\${(@f)$("\${(Q)words[1]}" __complete "\${(@Q)words[2,CURRENT-1]}" "\${(Q)PREFIX}" 2>/dev/null)}")
    case \${lines[1]} in
        files) _files; return ;;
        directories) _files -/; return ;;
    esac
    for line in "\${(@)lines[2,-1]}"; do
        [[ -n $line ]] || continue
        # "value:what it is", a colon of the value escaped
        local value=\${\${line%%$'\t'*}//:/\\:}
        if [[ $line == *$'\t'* ]]; then
            values+=("$value:\${line#*$'\t'}")
        else
            values+=("$value")
        fi
    done
    (( \${#values} )) || return 1
    if [[ \${lines[1]} == partial ]]; then
        _describe porthole values -S ''
    else
        _describe porthole values
    fi
}
if [[ \${funcstack[1]} == _porthole ]]; then
    _porthole "$@"
else
    compdef _porthole porthole
fi
`);

const fish = script(String.raw`# fish completion for porthole; load it with: porthole completion fish | source
function __porthole_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l lines ($words[1] __complete $words[2..-1] "$current" 2>/dev/null)
    switch "$lines[1]"
        case files
            __fish_complete_path "$current"
        case directories
            __fish_complete_directories "$current" ''
        case '*'
            string join \n -- $lines[2..-1]
    end
end
complete -c porthole -f -a '(__porthole_complete)'
`);

const scripts: Readonly<Record<ShellName, string>> = { bash, zsh, fish };
