# Installs kohya_ext into a Kohya_ss or sd-scripts checkout on Windows. The same as install.sh elsewhere.
#
# This script only looks for a Python >= 3.10; all the rest is done by it. Nothing of the machine's settings is changed.
# Where scripts may not be run:  powershell -ExecutionPolicy Bypass -File install.ps1
# Without PowerShell, from any folder:  py PATH\TO\THIS\FOLDER\kohya_ext install CHECKOUT
[CmdletBinding(PositionalBinding = $false)]
param(
    [Parameter(Position = 0)] [string] $Checkout,
    [string] $Python,
    [switch] $Demo,
    [switch] $Yes,
    [switch] $DryRun,
    [switch] $Uninstall,
    [switch] $PresetsOnly,
    [switch] $Help
)
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2.0

$usage = @'
usage: install.ps1 [CHECKOUT] [-Demo] [-Yes] [-DryRun] [-Uninstall] [-PresetsOnly] [-Python PATH] [-Verbose] [-Help]

  CHECKOUT       kohya_ss or sd-scripts folder; when omitted: the current folder's, a running GUI's, the known locations
  -Demo          train a toy diffusion model with everything switched on, on this machine, in a minute
  -Yes           do not ask (without a terminal there are no questions anyway)
  -DryRun        show what would change, write nothing
  -Verbose       with -DryRun: the preset files too, line by line
  -Uninstall     remove kohya_ext; the checkout is byte-identical to before
  -PresetsOnly   install the presets, patch nothing
  -Python PATH   the Python that runs Kohya; when omitted it is found
'@
if ($Help) { Write-Output $usage; exit 0 }

function Stop-With([int] $Code, [string] $Message) {
    # what would steer a terminal, or pass for a line of its own
    $visible = $Message -replace '[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]', '?'
    [Console]::Error.WriteLine("install.ps1: $visible")
    exit $Code
}

# Is there a Python >= 3.10 behind these words? -I: nothing of the current folder or of variables is imported.
function Test-Python([string[]] $Words) {
    $program = $Words[0]
    $before = @($Words | Select-Object -Skip 1)
    $preference = $ErrorActionPreference
    try {
        $ErrorActionPreference = 'SilentlyContinue'
        & $program @before -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>&1 | Out-Null
        return ($LASTEXITCODE -eq 0)
    }
    catch { return $false }
    finally { $ErrorActionPreference = $preference }
}

# What may be a Python, best first; each an array of the program's full path and the words that belong to it.
function Get-Candidates {
    $kohya = $Checkout
    if (-not $kohya -and (Test-Path -LiteralPath 'kohya_gui.py' -PathType Leaf)) { $kohya = (Get-Location -PSProvider FileSystem).ProviderPath }
    $folders = @()
    if ($Python) {
        if (Test-Path -LiteralPath $Python -PathType Leaf) { , @((Convert-Path -LiteralPath $Python)) }
        $folders += $Python
    }
    if ($kohya) { $folders += (Join-Path $kohya 'venv'), (Join-Path $kohya '.venv') }
    foreach ($active in $env:VIRTUAL_ENV, $env:CONDA_PREFIX) { if ($active) { $folders += $active } }
    foreach ($folder in $folders) {
        foreach ($place in 'Scripts\python.exe', 'python.exe') {
            $file = Join-Path $folder $place
            if (Test-Path -LiteralPath $file -PathType Leaf) { , @((Convert-Path -LiteralPath $file)) }
        }
    }
    foreach ($name in 'py.exe', 'python.exe', 'python3.exe') {
        foreach ($found in @(Get-Command -Name $name -CommandType Application -All -ErrorAction SilentlyContinue)) {
            # the one in WindowsApps opens the Microsoft Store; a relative entry of PATH means the current folder
            if ($found.Path -notlike '*\Microsoft\WindowsApps\*' -and [IO.Path]::IsPathRooted($found.Path)) {
                if ($name -eq 'py.exe') { , @($found.Path, '-3') } else { , @($found.Path) }
            }
        }
    }
}

if ($Demo -and ($Checkout -or $DryRun -or $Uninstall -or $PresetsOnly)) { Stop-With 2 '-Demo can be combined with -Python and -Yes only' }
if ($Uninstall -and $PresetsOnly) { Stop-With 2 '-PresetsOnly cannot be combined with -Uninstall' }

$runner = $null
foreach ($candidate in @(Get-Candidates)) {
    if (Test-Python $candidate) { $runner = $candidate; break }
}
if (-not $runner) { Stop-With 2 'no Python 3.10 or newer found: install one from python.org, or name it with -Python PATH' }

# The folder kohya_ext is run by its path: neither the current folder nor PYTHONPATH decides what is imported.
$words = @($runner | Select-Object -Skip 1) + @((Join-Path $PSScriptRoot 'kohya_ext'))
if ($Demo) { $words += 'demo' }
elseif ($Uninstall) { $words += 'uninstall' }
else { $words += 'install' }
if ($Yes -and -not $Demo) { $words += '--yes' }
if ($DryRun) { $words += '--dry-run' }
if ($PSBoundParameters['Verbose'] -and -not $Demo) { $words += '--verbose' }
if ($PresetsOnly) { $words += '--presets-only' }
if ($Python -and -not $Demo -and -not $Uninstall) { $words += '--python', $Python }
# a trailing backslash would escape the quote that Windows PowerShell puts behind a path with blanks
if ($Checkout) { $words += '--', ($Checkout -replace '(?<=[^\\:])\\+$', '') }
& $runner[0] @words
exit $LASTEXITCODE
